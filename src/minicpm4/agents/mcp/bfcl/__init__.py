"""BFCL v4's offline categories of one turn: its entries and its checkers, in an environment of their own."""
