#!/usr/bin/env python3
"""Set up longshot in .venv beside this file when that is needed, then run it.

    python3 run.py sample examples/cafe.yaml --out out/cafe   any longshot command
    python3 run.py test                                       the tests; more arguments go to pytest
    python3 run.py check                                      style, types and the layering of the package
    python3 run.py setup                                      the set-up alone

Needs Python 3.11 or newer and nothing else. The first run takes a minute or two; later ones start at once. The
set-up is redone when pyproject.toml or constraints.txt change. On Linux the CUDA build of torch is several GB, so it
is taken only where an NVIDIA driver is found; LONGSHOT_TORCH=cpu or LONGSHOT_TORCH=cuda decides instead.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

try:
    import fcntl
except ImportError:  # Windows: two set-ups at once are not kept apart there
    fcntl = None

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
SCRIPTS = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin")
PYTHON = os.path.join(SCRIPTS, "python.exe" if os.name == "nt" else "python")
STAMP = os.path.join(VENV, "longshot-setup.json")
OLDEST_PYTHON = (3, 11)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
EXTRAS = {"test": ["test"], "check": ["check", "test"]}


class SetupError(Exception):
    """A set-up that cannot go on: one message for the person at the keyboard."""


def main(arguments):
    """Run one command of the docstring above; return its exit code (2: the set-up cannot go on)."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    require_python()
    verb, rest = arguments[0], arguments[1:]
    try:
        set_up(EXTRAS.get(verb, []))
    except SetupError as error:
        say(str(error))
        return 2
    if verb == "setup":
        return 0
    if verb == "check":
        return check()
    if verb == "test":
        return hand_over(["-m", "pytest", *test_defaults(rest), *rest], OMP_NUM_THREADS="1")
    return hand_over(["-m", "longshot", *arguments])


# ---------------------------------------------------------------- the commands


def hand_over(arguments, **environment):
    """Become `.venv`'s Python with `arguments`, so that signals and the exit code are the command's own."""
    # GNU OpenMP's threads spin while they wait: on a machine whose cores are shared that made torch 7x slower a step.
    environment = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", **environment, **os.environ}
    command = [PYTHON, *arguments]
    if os.name == "nt":
        return subprocess.call(command, env=environment)
    sys.stdout.flush()
    sys.stderr.flush()
    return os.execve(PYTHON, command, environment)


def test_defaults(arguments):
    """Return pytest's arguments for a whole run (every core, folder `tests`); none of them when some are given."""
    return [] if arguments else ["-n", str(min(os.cpu_count() or 1, 8)), os.path.join(ROOT, "tests")]


def check():
    """Run every check, each even when an earlier one failed; return 0 only when all passed."""
    lint_imports = os.path.join(SCRIPTS, "lint-imports")
    checks = {
        "style": [PYTHON, "-m", "ruff", "check", "."],
        "format": [PYTHON, "-m", "ruff", "format", "--check", "."],
        "types": [PYTHON, "-m", "ty", "check", "--python", VENV],
        "layers": [lint_imports],
    }
    failed = []
    for name, command in checks.items():
        print(f"== {name}", flush=True)
        if subprocess.call(command, cwd=ROOT) != 0:
            failed.append(name)
    print("every check passed" if not failed else "failed: " + ", ".join(failed), flush=True)
    return 1 if failed else 0


# ---------------------------------------------------------------- the set-up


def set_up(extras):
    """Make `.venv` hold longshot with at least `extras`; at once when it already does. Raises SetupError."""
    if is_ready(extras):
        return
    with only_one_at_a_time():
        if is_ready(extras):  # another run did it while this one waited
            return
        begun = time.monotonic()
        make_venv()
        wanted = sorted({*extras, *read_stamp().get("extras", [])})
        with contextlib.suppress(FileNotFoundError):
            os.remove(STAMP)  # an interrupted install must not pass for a finished one
        install_torch()
        # --no-compile, here and for torch: bytecode for what is used is made on use, which saves 30 s of the set-up
        say("installing longshot and what it needs")
        package = "." + (f"[{','.join(wanted)}]" if wanted else "")
        if pip("install", "--no-compile", "--constraint", "constraints.txt", "--editable", package) != 0:
            raise SetupError("pip could not install longshot: its own message above says why")
        write_stamp(wanted)
        say(f"ready after {time.monotonic() - begun:.0f} s")


def is_ready(extras):
    """Say whether `.venv` was set up from the present files, in this folder, with `extras`."""
    stamp = read_stamp()
    present = stamp.get("fingerprint") == fingerprint() and stamp.get("root") == ROOT
    return present and os.path.exists(PYTHON) and set(extras) <= set(stamp.get("extras", []))


def fingerprint():
    """Return a hash of the files that decide what is installed."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read() + b"\0")
    return digest.hexdigest()


def read_stamp():
    """Return what the last finished set-up noted: root, fingerprint, extras; empty when there is none."""
    try:
        with open(STAMP, encoding="utf-8") as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(extras):
    """Note a finished set-up."""
    with open(STAMP + ".new", "w", encoding="utf-8") as file:
        json.dump({"root": ROOT, "fingerprint": fingerprint(), "extras": extras}, file)
    os.replace(STAMP + ".new", STAMP)


@contextlib.contextmanager
def only_one_at_a_time():
    """Hold the set-up's lock, waiting for another run's set-up to end; the system frees it when a run is killed."""
    with open(os.path.join(ROOT, ".venv.lock"), "w", encoding="utf-8") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say("another run is setting up .venv: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def require_python():
    """Go on under a newer Python on the PATH when this one is too old; leave with a message when there is none."""
    if sys.version_info >= OLDEST_PYTHON:
        return
    for minor in range(OLDEST_PYTHON[1], OLDEST_PYTHON[1] + 4):
        newer = shutil.which(f"python3.{minor}")
        if (
            newer and subprocess.call([newer, "-c", ""]) == 0
        ):  # a version manager's stub may be there and not run
            os.execv(newer, [newer, *sys.argv])
    sys.exit(
        "longshot needs Python 3.11 or newer; this is {}.{}, from {}".format(
            *sys.version_info[:2], sys.executable
        )
    )


def make_venv():
    """Make `.venv`, or mend one that was moved, cut short or made without pip."""
    moved = read_stamp().get("root", ROOT) != ROOT
    if not moved and (runs("-m", "pip", "--version") or runs("-m", "ensurepip")):
        return
    if os.path.exists(VENV):
        say(".venv is broken or was moved: making it anew")
    else:
        say(f"making .venv with Python {sys.version.split()[0]}")
    with_pip = importlib.util.find_spec("ensurepip") is not None
    command = [sys.executable, "-m", "venv", "--clear", *([] if with_pip else ["--without-pip"]), VENV]
    if importlib.util.find_spec("venv") is None or subprocess.call(command) != 0:
        raise SetupError(no_venv_message())
    if not with_pip and not borrow_pip():
        raise SetupError(no_venv_message())


def borrow_pip():
    """Put pip into `.venv` by the system's own pip; say whether that worked."""
    command = [sys.executable, "-m", "pip", "--python", PYTHON, "install", "--quiet", "pip"]
    return subprocess.call(command, stderr=subprocess.DEVNULL) == 0


def no_venv_message():
    """Return how to get the part of Python that some Linux distributions leave out."""
    package = "python{}.{}-venv".format(*sys.version_info[:2])
    return (
        f"{sys.executable} cannot make a virtual environment. On Debian and Ubuntu that is a package of its own:\n"
        f"    sudo apt-get install {package}\n"
        "and then run the same command again."
    )


# ---------------------------------------------------------------- torch: CPU or CUDA


def install_torch():
    """Install the build of torch that fits this machine, and say which; SetupError rather than GBs nobody asked for."""
    choice = os.environ.get("LONGSHOT_TORCH", "")
    if choice not in ("", "cpu", "cuda"):
        raise SetupError(f"LONGSHOT_TORCH is {choice!r}; it can be cpu or cuda")
    wants_cpu = choice == "cpu" or (choice == "" and not has_nvidia_driver())
    upgrade_old_pip()
    requirement = torch_requirement()
    packages = planned(requirement)
    brings_cuda = any(name.startswith(("nvidia-", "cuda-")) for name in packages or [])
    if packages == {}:
        say("torch is there already")
    elif packages is not None and not (wants_cpu and brings_cuda):
        say(f"installing torch {packages['torch']}" + (", with CUDA: several GB" if brings_cuda else ""))
        if pip("install", "--no-compile", "--constraint", "constraints.txt", requirement) != 0:
            raise SetupError("pip could not install torch: its own message above says why")
    else:
        install_torch_from_cpu_index(requirement, unplanned=packages is None)
    report_torch(wants_cpu)


def install_torch_from_cpu_index(requirement, unplanned):
    """Install PyTorch's own CPU build, which the usual index does not carry for Linux."""
    say(f"no NVIDIA driver here: installing the CPU build of torch from {CPU_INDEX}")
    # No second tries: where this index is out of reach, pip's five cost more than a minute.
    arguments = ["--retries", "0", "--timeout", "20", "--no-deps", "--index-url", CPU_INDEX, requirement]
    if pip("install", *arguments) == 0:
        return
    trouble = (
        "names no build of torch that fits" if unplanned else "would bring several GB of CUDA with torch"
    )
    raise SetupError(
        f"pip's package index {trouble}, and {CPU_INDEX} could not be used either.\n"
        f"Install a CPU build by hand: {PYTHON} -m pip install {requirement!r} --index-url ...\n"
        "or take the large build by setting LONGSHOT_TORCH=cuda; then run the same command again."
    )


def planned(requirement):
    """Return {package: version} that pip would install for `requirement`, or None where it finds no way."""
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        arguments = ["--dry-run", "--report", report, "--constraint", "constraints.txt", requirement]
        if pip("install", *arguments, quiet=True) != 0:
            return None
        with open(report, encoding="utf-8") as file:
            entries = [entry["metadata"] for entry in json.load(file)["install"]]
    return {entry["name"].lower().replace("_", "-"): entry["version"] for entry in entries}


def report_torch(wants_cpu):
    """Load torch once: say which build it is, and what is odd about it on this machine."""
    code = "import torch; print(torch.__version__, torch.version.cuda or 'none', torch.cuda.is_available())"
    result = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    if result.returncode != 0:
        raise SetupError("torch was installed but does not load:\n" + result.stderr.strip()[-2000:])
    version, cuda, usable = result.stdout.split()[-3:]
    say(f"torch {version}" + (f", CUDA {cuda}" if cuda != "none" else ", for the CPU"))
    if not wants_cpu and sys.platform.startswith("linux") and usable != "True":
        say(
            "an NVIDIA GPU was asked for or found, but this build of torch cannot use it: longshot will use the CPU"
        )


def has_nvidia_driver():
    """Say whether an NVIDIA driver is loaded here; installed CUDA libraries or tools alone are not one."""
    if os.path.exists(
        "/dev/nvidiactl"
    ):  # not /proc/driver/nvidia: a container without a GPU may show that too
        return True
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listing = subprocess.run([tool, "-L"], capture_output=True, text=True)
    return listing.returncode == 0 and "GPU 0" in listing.stdout


def torch_requirement():
    """Return the line of pyproject.toml that says which torch longshot takes."""
    import tomllib  # from Python 3.11 on, which require_python has seen to

    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]
    return next(line for line in dependencies if line.startswith("torch"))


def upgrade_old_pip():
    """Renew a pip older than 24: those download whole wheels for a dry run."""
    version = subprocess.run(
        [PYTHON, "-m", "pip", "--version"], capture_output=True, text=True
    ).stdout.split()
    if len(version) > 1 and int(version[1].split(".")[0]) < 24:
        pip("install", "--upgrade", "pip>=24", quiet=True)  # an old one still works, only slower


# ---------------------------------------------------------------- small things


def pip(*arguments, quiet=False):
    """Run `.venv`'s pip in this folder, with progress bars only for a person; return its exit code."""
    quiet = quiet or not sys.stderr.isatty()
    command = [
        PYTHON,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        *(["-qq"] if quiet else []),
    ]
    return subprocess.call([*command, *arguments], cwd=ROOT, stdout=sys.stderr)


def runs(*arguments):
    """Say whether `.venv`'s Python runs these arguments without an error."""
    try:
        result = subprocess.run([PYTHON, *arguments], capture_output=True)
    except OSError:
        return False
    return result.returncode == 0


def say(message):
    """Tell the person what happens, apart from the command's own output."""
    print(f"run.py: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
