"""How a layer calls its cell: as a pure function, with masks, in scopes."""
