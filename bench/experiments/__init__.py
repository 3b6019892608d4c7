"""Questions about samplers, answered on exact and on learned moments."""
