"""Names in pickles: what could do harm is malicious, what means nothing to us is foreign, and neither is looked up."""

from __future__ import annotations

import pytest

from library.core.pickle_names import MaliciousPickle, Named, judge

HARMFUL = (
    "os system", "posix system", "nt system", "os.path os.system", "subprocess Popen", "sys exit", "shutil rmtree",
    "socket create_connection", "runpy run_path", "importlib import_module", "importlib.util module_from_spec",
    "ctypes CDLL", "_ctypes dlopen", "pty spawn", "platform popen", "webbrowser open", "code InteractiveConsole",
    "codeop compile_command", "multiprocessing Process", "threading Thread", "_thread start_new_thread",
    "pickle loads", "pickle Unpickler", "_pickle loads", "cPickle loads", "marshal loads", "shelve open",
    "io open", "_io open", "_io FileIO", "io FileIO", "codecs open", "_pyio open", "gzip open", "tarfile open",
    "zipfile ZipFile", "pathlib Path.touch", "pathlib Path.write_text", "pathlib PosixPath.unlink",
    "operator attrgetter", "operator methodcaller", "_operator attrgetter", "commands getoutput", "popen2 popen2",
    "tempfile mkdtemp", "urllib.request urlopen", "urllib urlopen", "urllib2 urlopen", "http.client HTTPConnection",
    "http.server HTTPServer", "ftplib FTP", "smtplib SMTP", "telnetlib Telnet", "asyncio.subprocess Process",
    "asyncio create_subprocess_shell", "sqlite3 connect", "logging FileHandler", "logging.config dictConfig",
    "pdb run", "bdb Bdb", "cProfile run", "timeit timeit", "pydoc pipepager", "types FunctionType", "types CodeType",
    "signal raise_signal", "atexit register", "pip main", "venv create", "uuid _get_command_stdout",
    "torch.hub os.system", "torch.serialization pickle.loads", "torch.hub sys.modules", "foreign thing.io.open",
    "foreign thing.__globals__", "collections OrderedDict.__subclasses__", "builtins eval.__call__",
    *(f"builtins {name}" for name in (
        "eval", "exec", "compile", "open", "__import__", "getattr", "setattr", "delattr", "globals", "locals", "vars",
        "input", "breakpoint", "execfile", "file", "apply", "reload",
    )),
)  # fmt: skip
FOREIGN = (
    "random Random", "time struct_time", "dataclasses _MISSING_TYPE", "inspect _empty", "operator itemgetter",
    "_operator itemgetter", "signal Signals", "zoneinfo ZoneInfo", "ipaddress IPv4Address", "collections.abc Mapping",
    "_io BytesIO", "io BytesIO", "io StringIO", "weakref ref", "array array", "array _array_reconstructor",
    "functools reduce", "builtins map", "builtins filter", "builtins print", "http HTTPStatus",
    "urllib.parse ParseResult", "ast literal_eval", "posixpath join", "threadpoolctl threadpool_limits",
    "osgeo Thing", "system thing", "numpy dtype", "pytorch_lightning.callbacks Checkpoint", "codecs encode",
    "datetime datetime.fromisoformat", "string Template", "_struct Struct", "statistics NormalDist", "__main__ Config",
)  # fmt: skip
OURS = (
    "collections OrderedDict", "torch FloatStorage", "torch._utils _rebuild_tensor_v2", "torch float32",
    "builtins set", "builtins int", "builtins ValueError", "datetime datetime", "pathlib PosixPath",
    "argparse Namespace", "functools partial", "copyreg _reconstructor", "_codecs encode", "uuid UUID",
)  # fmt: skip


def named(words: str) -> Named:
    module, name = words.split(" ")
    return Named(module, name)


@pytest.mark.parametrize("words", HARMFUL)
def test_what_could_do_harm_is_malicious(words: str) -> None:
    with pytest.raises(MaliciousPickle, match=named(words).name.split(".")[-1]):
        judge(named(words))


@pytest.mark.parametrize("words", FOREIGN)
def test_the_rest_of_the_world_is_foreign(words: str) -> None:
    assert judge(named(words)) is True


@pytest.mark.parametrize("words", OURS)
def test_tensors_and_plain_data_are_not_foreign(words: str) -> None:
    assert judge(named(words)) is False


def test_system_functions_are_told_by_the_name_people_know() -> None:
    with pytest.raises(MaliciousPickle) as caught:
        judge(Named("posix", "system"))
    assert caught.value.args == ("os.system (as posix.system)",)
