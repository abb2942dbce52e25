"""Every constant that separates one use of a hash, a key or a signature from another."""

PROTOCOL = b"fedhpc-secagg/1"

# Names of hashes: H(name, …)
HASH_TREE = b"tree"
HASH_LAYOUT = b"layout"
HASH_T0 = b"T0"
HASH_T1 = b"T1"
HASH_T2 = b"T2"
HASH_STATE = b"state"
HASH_INPUT = b"input"

# Names of derived keys: KDF(salt, ikm, name, i, j)
KEY_EDGE = b"edge"
KEY_ROUNDING = b"rounding"
KEY_LEDGER = b"ledger"
KEY_LEDGER_BLOCKS = b"ledger-blocks"

# Names of signed messages
SIGN_CONFIG = "CONFIG"
SIGN_KEYS = "M1"
SIGN_MPI = "MPI"
SIGN_RESULT = "M6"

# Purposes of a masked sum, as they stand in M0 and in H("input", …)
PURPOSE_TRAIN = "train"
PURPOSE_WEIGHTS = "weights"
