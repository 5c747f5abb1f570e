#!/usr/bin/env python3
"""The project's chores, for any machine with a Python: python3 tasks.py COMMAND [ARGUMENTS]

  demo       set up .venv and survey networks trained on real digits; ends with an HTML report
  test       set up .venv and run the tests and the examples in docstrings
  lint       ruff, mypy and the import rules
  docs       run the examples in README.md and docs/
  bench      measure against peers (installs them too)
  calibrate  coverage over 1000 seeds; writes docs/calibration/
  install    set up .venv for development, and stop there
  clean      delete .venv and the caches

Arguments after the command go to what it runs: `python3 tasks.py test -k spec`.
REUSE_TORCH=1 builds .venv on top of a torch that is already installed.
"""

# Standard library only, and syntax that a Python of ten years ago can parse: this file is what
# tells its user that the Python at hand is too old.
from __future__ import print_function

import difflib
import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "thalweg-installed.json")
WINDOWS = os.name == "nt"
BIN = os.path.join(VENV, "Scripts" if WINDOWS else "bin")
PYTHON = os.path.join(BIN, "python.exe" if WINDOWS else "python")
OLDEST = (3, 11)
NO_NETWORK = (
    "NewConnectionError",
    "NameResolutionError",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "ConnectTimeoutError",
    "ConnectionResetError",
    "ReadTimeoutError",
    "ProxyError",
    "Max retries exceeded",
)


class Stop(Exception):
    """What went wrong in one sentence, and what to do about it."""

    def __init__(self, sentence, hint):
        Exception.__init__(self, sentence)
        self.hint = hint


def call(command, **options):
    """Run a command in the project's folder and return its exit status."""
    return subprocess.call(command, cwd=ROOT, **options)


def ask(command, code):
    """Return what a Python prints for `code`, or None if it cannot run it."""
    try:
        process = subprocess.Popen(
            list(command) + ["-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        answer = process.communicate()[0]
    except OSError:
        return None
    return answer.decode("utf-8", "replace").strip() if process.returncode == 0 else None


def find_python():
    """Return the command of the first Python that is new enough."""
    candidates = [[sys.executable]] if sys.executable else []
    candidates += [["python3.13"], ["python3.12"], ["python3.11"], ["python3"], ["python"]]
    candidates += [["py", "-3"]] if WINDOWS else []
    seen = []
    for command in candidates:
        answer = ask(command, "import sys; print('%d.%d' % sys.version_info[:2])")
        if answer is None:
            continue
        if tuple(int(part) for part in answer.split(".")) >= OLDEST:
            return command
        seen.append("{} is {}".format(" ".join(command), answer))
    raise Stop(
        "thalweg needs Python {}.{} or newer, and there is none here ({}).".format(
            OLDEST[0], OLDEST[1], "; ".join(seen) or "no Python found"
        ),
        "install one (Debian, Ubuntu: apt install python3 python3-venv; others: python.org), "
        "then run this file with it: python3.12 tasks.py ...",
    )


def read(path):
    """Return the bytes of a file, none if it is not there."""
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except (IOError, OSError):
        return b""


def content_key():
    """Return a digest of all that decides what belongs in .venv, its Python included."""
    digest = hashlib.sha256()
    for path in ("pyproject.toml", "constraints.txt", os.path.join(VENV, "pyvenv.cfg")):
        content = read(os.path.join(ROOT, path))
        digest.update(str(len(content)).encode("ascii") + b":" + content)
    return digest.hexdigest()


def read_stamp():
    """Return the stamp: the key of what was installed, and its extras."""
    try:
        stamp = json.loads(read(STAMP).decode("utf-8"))
        return stamp["key"], set(stamp["extras"])
    except (ValueError, KeyError, TypeError):
        return None, set()


def write_stamp(extras):
    """Write the stamp in one move, so that a killed run leaves none."""
    with open(STAMP + ".new", "w") as stream:
        json.dump({"key": content_key(), "extras": sorted(extras)}, stream)
    if os.path.exists(STAMP):
        os.remove(STAMP)
    os.rename(STAMP + ".new", STAMP)


def reuse_torch():
    """Say whether the user asked for an environment on top of an installed torch."""
    return os.environ.get("REUSE_TORCH", "") not in ("", "0")


def layered():
    """Say whether .venv sees the packages of the Python below it."""
    config = read(os.path.join(VENV, "pyvenv.cfg")).decode("utf-8", "replace").lower()
    return "include-system-site-packages = true" in config


def create_venv():
    """Make .venv, or explain what is missing."""
    base = find_python()
    shown = " ".join(base)
    if ask(base, "import venv, ensurepip") is None:
        raise Stop(
            "the Python at {} cannot make environments: its venv module is missing.".format(shown),
            "Debian, Ubuntu: apt install python3-venv (or python{}-venv), then run this "
            "again.".format(ask(base, "import sys; print('%d.%d' % sys.version_info[:2])")),
        )
    torch_home = None
    if reuse_torch():
        torch_home = ask(base, "import torch, os; print(os.path.dirname(torch.__path__[0]))")
        if torch_home is None:
            raise Stop(
                "REUSE_TORCH=1, but the Python at {} has no torch to reuse.".format(shown),
                "run this file with the Python that has it (/path/to/python tasks.py ...), "
                "or leave REUSE_TORCH unset.",
            )
    print("Creating .venv with {} ...".format(shown))
    command = base + ["-m", "venv", "--clear"]
    if call(command + (["--system-site-packages"] if torch_home else []) + [VENV]) != 0:
        raise Stop(
            "{} -m venv failed; its message is above.".format(shown),
            "is the disk full, or {} not writable?".format(ROOT),
        )
    if torch_home and ask([PYTHON], "import torch") is None:
        # torch lives in an environment of its own, which a second layer does not see
        site = ask([PYTHON], "import sysconfig; print(sysconfig.get_path('purelib'))")
        with open(os.path.join(site, "reuse_torch.pth"), "w") as stream:
            stream.write(torch_home + "\n")


def constraints():
    """Return the file of pins; on top of installed packages, those keep their versions."""
    pins = os.path.join(ROOT, "constraints.txt")
    if not layered():
        return pins
    code = (
        "import importlib.metadata as m, json; "
        "print(json.dumps([d.metadata['Name'] for d in m.distributions()]))"
    )

    def plain(name):
        return name.strip().lower().replace("_", "-").replace(".", "-")

    present = {plain(name) for name in json.loads(ask([PYTHON], code) or "[]") if name}
    kept = [
        line
        for line in read(pins).decode("utf-8").splitlines()
        if plain(line.partition("==")[0]) not in present
    ]
    reduced = os.path.join(VENV, "constraints.txt")
    with open(reduced, "w") as stream:
        stream.write("\n".join(kept) + "\n")
    return reduced


def pip_install(arguments):
    """Run pip, showing what it says, and explain a failure."""
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    process = subprocess.Popen(command + arguments, cwd=ROOT, stderr=subprocess.PIPE)
    said = []
    with process.stderr:
        for line in process.stderr:
            said.append(line.decode("utf-8", "replace"))
            sys.stderr.write(said[-1])
    if process.wait() == 0:
        return
    text = "".join(said)
    if any(sign in text for sign in NO_NETWORK):
        raise Stop(
            "pip could not reach the package index, so .venv is not complete.",
            "check the network, a proxy (HTTPS_PROXY) or a mirror (PIP_INDEX_URL), then run "
            "the same command again.",
        )
    if "No space left on device" in text:
        raise Stop(
            "the disk is full, so .venv is not complete.",
            "with CUDA, torch alone takes 6 GB; README.md says how to get its CPU build.",
        )
    if "No matching distribution found for torch" in text:
        raise Stop(
            "the package index has no torch for this Python and machine.",
            "try another Python (3.11 to 3.13), or REUSE_TORCH=1 on top of a torch that you have.",
        )
    raise Stop(
        "pip could not install thalweg; its message is above.",
        "`python3 tasks.py clean` starts afresh.",
    )


def install(extra):
    """Bring .venv up to date with pyproject.toml and constraints.txt; quick if it is."""
    key, extras = read_stamp()
    usable = os.path.exists(PYTHON)
    if usable and key == content_key() and extra in extras and (layered() or not reuse_torch()):
        return
    if os.path.exists(STAMP):
        os.remove(STAMP)
    if not usable or (reuse_torch() and not layered()) or ask([PYTHON], "import pip") is None:
        create_venv()
    wanted = sorted((extras | {extra}) - {""})
    print("Installing thalweg and what it needs into .venv; the first time takes minutes ...")
    sys.stdout.flush()
    pins = ["--constraint", constraints()]
    # The build tool goes in first, under the pins: an isolated build would fetch it unpinned.
    pip_install(pins + ["hatchling"])
    target = ".[{}]".format(",".join(wanted)) if wanted else "."
    pip_install(pins + ["--no-build-isolation", "--editable", target])
    write_stamp(extras | {extra, ""})


def run_python(*arguments, **variables):
    """Run .venv's Python on some arguments and return its exit status."""
    return call([PYTHON] + list(arguments), env=dict(os.environ, **variables))


def run_pytest(arguments, **variables):
    """Run pytest on every core."""
    parallel = ["-n", "auto", "--dist", "worksteal"]
    return run_python("-m", "pytest", *(parallel + list(arguments)), **variables)


def demo(arguments):
    install("")
    return call([os.path.join(BIN, "thalweg"), "demo"] + list(arguments))


def test(arguments):
    install("dev")
    return run_pytest(arguments)


def lint(arguments):
    install("dev")
    tools = [
        ["ruff", "check"] + list(arguments),
        ["ruff", "format", "--check"],
        ["mypy"],
        ["lint-imports", "--no-logo"],
    ]
    failed = []
    for tool in tools:
        print("+ " + " ".join(tool))
        sys.stdout.flush()
        if call([os.path.join(BIN, tool[0])] + tool[1:]) != 0:
            failed.append(" ".join(tool))
    print("lint: " + ("failed: " + ", ".join(failed) if failed else "all four passed"))
    return 1 if failed else 0


def docs(arguments):
    install("dev")
    return run_python("-m", "pytest", os.path.join("tests", "test_docs.py"), "-m", "", *arguments)


def bench(arguments):
    install("bench")
    if arguments:
        return run_python(*arguments)
    status = 0
    for path in sorted(glob.glob(os.path.join(ROOT, "benchmarks", "[!_]*.py"))):
        script = os.path.relpath(path, ROOT)
        print("+ python " + script)
        sys.stdout.flush()
        status = run_python(script) or status
    return status


def calibrate(arguments):
    install("dev")
    variables = {"THALWEG_CALIBRATE": os.environ.get("THALWEG_CALIBRATE", "1000")}
    if not arguments:  # a part of the tests would make half a table
        variables["THALWEG_CALIBRATE_TABLES"] = os.path.join(ROOT, "docs", "calibration")
    return run_pytest(["-m", "calibration"] + list(arguments), **variables)


def only_install(arguments):
    install("dev")
    print(".venv is ready; its Python is {}".format(os.path.relpath(PYTHON, ROOT)))
    return 0


def clean(arguments):
    for name in (
        ".venv",
        "build",
        "dist",
        ".hypothesis",
        ".import_linter_cache",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
    ):
        shutil.rmtree(os.path.join(ROOT, name), ignore_errors=True)
    return 0


COMMANDS = {
    "demo": demo,
    "test": test,
    "lint": lint,
    "docs": docs,
    "bench": bench,
    "calibrate": calibrate,
    "install": only_install,
    "clean": clean,
}


def main(arguments):
    """Run one command and return its exit status."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0 if arguments else 2
    name = arguments[0]
    try:
        if name not in COMMANDS:
            close = difflib.get_close_matches(name, sorted(COMMANDS), 1)
            raise Stop(
                "there is no command {!r}.".format(name),
                "did you mean {}?".format(close[0]) if close else "python3 tasks.py --help",
            )
        return COMMANDS[name](arguments[1:])
    except Stop as problem:
        sys.stdout.flush()
        sys.stderr.write("error: {}\nhint: {}\n".format(problem, problem.hint))
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
