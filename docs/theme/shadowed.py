"""Extension of griffe for functions named like their module: `gms_fast.editing.inpaint`."""

from typing import Any

import griffe


class Shadowed(griffe.Extension):
    """Let a name of a package mean the function that it imports, not the submodule."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Replace the submodules in a package and in all packages below it."""
        replace(pkg)


def replace(package: griffe.Module) -> None:
    """Replace submodules by aliases of the functions of the same name."""
    for module in [member for member in package.members.values() if isinstance(member, griffe.Module)]:
        replace(module)
        function = f"{module.path}.{module.name}"
        if package.imports.get(module.name) == function:
            package.members[module.name] = griffe.Alias(module.name, module.members[module.name], parent=package)
