"""Places that keep entries. Read `memory` first: it is the contract in its shortest form."""
