"""Every constant that separates one use of a hash, a key or a signature from another."""

PROTOCOL = b"fedhpc-secagg/3"

# Names of hashes: H(name, …)
HASH_TREE = b"tree"
HASH_LAYOUT = b"layout"
HASH_T0 = b"T0"
HASH_T1 = b"T1"
HASH_T2 = b"T2"
HASH_T3 = b"T3"
HASH_SELF = b"self"
HASH_GROUP = b"group"
HASH_SHARE_A = b"share-a"
HASH_SHARE_B = b"share-b"
HASH_NEED = b"need"
HASH_STATE = b"state"
HASH_INPUT = b"input"
HASH_ENROL = b"enrol"
HASH_SALT = b"salt"
HASH_LAYOUT_KEY = b"layout-key"
HASH_LARGEST = b"largest"
HASH_SUM = b"sum"
HASH_RESULT = b"M6"

# Names of derived keys: KDF(salt, ikm, name, i, j)
KEY_EDGE = b"edge"
KEY_CHAN = b"chan"
KEY_CHAIN = b"chain"
KEY_NEXT = b"next"
KEY_MAC = b"mac"
KEY_SELF = b"self"
KEY_TAG = b"tag"
KEY_TAG_MASK = b"tagmask"
KEY_STATE = b"state"
KEY_ROUNDING = b"rounding"
KEY_LEDGER = b"ledger"
KEY_LEDGER_BLOCKS = b"ledger-blocks"
KEY_LEDGER_VALUE = b"ledger-value"
KEY_LEDGER_DATA = b"ledger-data"
KEY_OUTBOX = b"outbox"
KEY_SALT = b"salt"
KEY_BLIND = b"blind"
KEY_LAYOUT = b"layout"
KEY_LARGEST = b"largest"
KEY_ATTEMPT_FILE = b"attempt-file"
KEY_ENROL_ACCESS = b"enrol-access"
KEY_ENROL_PROOF = b"enrol-proof"

# Names of MACs between two sites of a job
MAC_PROPOSAL = b"proposal"
MAC_READY = b"ready"

# Names of signed messages
SIGN_CONFIG = "CONFIG"
SIGN_KEYS = "M1"
SIGN_SHARES = "M2"
SIGN_MASKED = "M3"
SIGN_SURVIVORS = "M4"
SIGN_UNMASK = "M5"
SIGN_MPI = "MPI"
SIGN_RESULT = "M6"
SIGN_ABANDON = "ABANDON"
SIGN_NEED = "NEED"
SIGN_STATE = "STATE"
SIGN_ENROL = "ENROL"

# The last tensor of every vector, beside the named ones
SALT = "salt"

# Purposes of a masked sum, as they stand in M0 and in H("input", …)
PURPOSE_TRAIN = "train"
PURPOSE_WEIGHTS = "weights"
PURPOSE_START = "start"

# Classes of sums in a ledger; any other is a statistic's own name
CLASS_TRAIN = "train"
CLASS_WEIGHTS = "weights"
CLASS_STANDARDISE = "standardise"
CLASS_MEASURED = "measured"
CLASS_SCALE = "scale"
CLASS_START = "start"
CLASS_UNNAMED = "unnamed"

# Nonces of Seal: the number of the message that carries the box; a channel key seals one box per number
SEAL_SHARES = 2
SEAL_UNMASK = 5
