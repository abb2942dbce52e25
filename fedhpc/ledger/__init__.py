"""An institution's ledger on disk: which vector went into which sum, kept forever."""
