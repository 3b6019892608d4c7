"""Commands that make the files which the package ships: networks, classifiers, tables."""
