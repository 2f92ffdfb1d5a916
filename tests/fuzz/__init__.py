"""Made-up inputs for all that reads what strangers wrote: for scripts/fuzz.py and tests."""

from tests.fuzz.data_files import READERS as _DATA
from tests.fuzz.endings import READERS as _ENDINGS
from tests.fuzz.evaluations import READERS as _EVALUATIONS
from tests.fuzz.extension import READERS as _EXTENSION
from tests.fuzz.grammars import READERS as _GRAMMARS
from tests.fuzz.http_servers import READERS as _HTTP_SERVERS
from tests.fuzz.hub_answers import READERS as _HUB
from tests.fuzz.kept import READERS as _KEPT
from tests.fuzz.kept_files import READERS as _KEPT_FILES
from tests.fuzz.model_files import READERS as _MODELS
from tests.fuzz.pieces import READERS as _PIECES
from tests.fuzz.reader import Reader
from tests.fuzz.runs import READERS as _RUNS
from tests.fuzz.server import READERS as _SERVER
from tests.fuzz.tables import READERS as _TABLES
from tests.fuzz.texts import READERS as _TEXTS
from tests.fuzz.tools import READERS as _TOOLS

_EVERY = [*_EVALUATIONS, *_MODELS, *_TEXTS, *_PIECES, *_TABLES, *_RUNS, *_SERVER, *_KEPT, *_DATA, *_EXTENSION]
_EVERY += [*_KEPT_FILES, *_GRAMMARS, *_HUB, *_TOOLS, *_HTTP_SERVERS, *_ENDINGS]
READERS: dict[str, Reader] = {reader.name: reader for reader in _EVERY}
