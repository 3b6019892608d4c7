"""Files: written whole or not at all, held by one run at a time, and read with every doubt about their origin."""
