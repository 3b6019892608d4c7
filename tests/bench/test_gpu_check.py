"""GPU sessions: a rehearsal without a GPU, and parts that fail, hang or are interrupted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from places import ROOT

from bench.gpu import gpu_check, parts, preflight, processes
from bench.gpu.parts import Part, Session
from bench.records import checkout
from gms_fast.ops import native

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
HANGS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # inherits the ignored signal
print("grandchild", child.pid)
time.sleep(60)
"""


def python(code):
    return [sys.executable, "-c", code]


def gpu_check_py(*arguments, **environment):
    command = [sys.executable, "-m", "bench.gpu.gpu_check", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


@pytest.fixture
def session(tmp_path, monkeypatch):
    """Make a session whose parts receive SIGINT, which shells ignore in background jobs."""
    monkeypatch.setattr(processes, "GRACE", 1.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Session(tmp_path, "gpu", 60, {}, {"commit": "abc"})
    signal.signal(signal.SIGINT, before)


def record(session):
    return json.loads((session.log.parent / "gpu.json").read_text())


def runs(pid):
    """Return True if a process runs and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def without_git(tmp_path_factory):
    """Return a PATH with all tools but git."""
    folder = tmp_path_factory.mktemp("bin")
    for tool in (t for place in reversed(os.environ["PATH"].split(":")) for t in Path(place).glob("*")):
        link = folder / tool.name
        link.unlink(missing_ok=True)
        link.symlink_to(tool)
    (folder / "git").unlink(missing_ok=True)
    return str(folder)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory, without_git):
    """Return the output and the folder of a rehearsal on a machine without git."""
    if not native.available or shutil.which("g++") is None:
        pytest.skip("a rehearsal needs g++ and pybind11")
    out = tmp_path_factory.mktemp("session")
    done = gpu_check_py("--rehearse", "--out", out, PATH=without_git)
    return done, out


@pytest.mark.slow(300)
def test_rehearsal_passes_every_part(rehearsal):
    done, out = rehearsal
    assert done.returncode == 0, f"{done.stdout}\n{(out / 'gpu.txt').read_text()}"
    found = json.loads((out / "gpu.json").read_text())
    planned = [p.name for p in gpu_check.Plan(out, None, True).gpu() if not p.unless]
    assert sorted(found["parts"]) == sorted(planned)
    assert all(p["outcome"] == "passed" for name, p in found["parts"].items() if not name.startswith("warm-"))
    assert found["commit"] is None
    assert "commit unknown" in done.stdout
    assert found["parts"]["tests-cuda"]["tests"]["passed"] > 100
    for backend in ("cuda", "triton"):
        assert found[backend]["bars"]


@pytest.mark.slow(300)
def test_results_fit_what_comes_back_from_a_gpu_machine(rehearsal):
    """Expect few, small files with plain names in one folder."""
    _, out = rehearsal
    files = list(out.iterdir())
    assert {"gpu.json", "gpu.txt", "junit-tests-cuda.xml"} < {f.name for f in files}
    assert len(files) <= 6  # with those of --sanitize 8
    assert all(re.fullmatch(r"[\w.-]+", f.name, re.ASCII) and f.stat().st_size < 1 << 20 for f in files)


@pytest.mark.slow(300)
def test_rehearsal_of_the_sanitizer(rehearsal):
    _, out = rehearsal  # has built the module
    done = gpu_check_py(
        "--rehearse", "--sanitize", "--out", out, "--parts", "memcheck", "racecheck", "initcheck", "--commit", "a1"
    )
    assert done.returncode == 0, f"{done.stdout}\n{(out / 'sanitize.txt').read_text()}"
    assert {"memcheck", "racecheck", "initcheck"} < set(json.loads((out / "sanitize.json").read_text())["parts"])
    assert (out / "gpu.json").exists()


@pytest.mark.parametrize(("plan", "minutes"), [("gpu", 8), ("sanitize", 4)])
def test_budget_leaves_time_to_stop(plan, minutes, tmp_path):
    shares = sum(p.seconds for p in getattr(gpu_check.Plan(tmp_path, None, False), plan)())
    assert 0.9 * 60 * minutes < shares <= 60 * minutes - 2 * processes.GRACE


def test_part_that_fails_costs_itself_only(session):
    bad = python("print('so far'); raise SystemExit(3)")
    assert session.run([Part("bad", bad, 5), Part("absent", ["no-such-tool"], 5), Part("good", python(""), 5)]) == [
        "bad",
        "absent",
    ]
    found = record(session)["parts"]
    assert found["bad"]["outcome"] == "failed with status 3"
    assert "so far" in found["bad"]["tail"]
    assert "no-such-tool" in found["absent"]["outcome"]
    assert found["good"]["outcome"] == "passed"


def test_part_that_hangs_is_stopped_with_its_grandchild(session):
    out = session.log.parent
    rows = f"open({str(out / 'part.json')!r}, 'w').write('{{\"bars\": [1]}}')"
    start = time.monotonic()
    failed = session.run([Part("hangs", python(rows + HANGS), 2, keep="cuda"), Part("good", python(""), 57)])
    assert failed == ["hangs"]
    assert time.monotonic() - start < 10
    found = record(session)
    assert found["parts"]["hangs"]["outcome"].startswith("stopped after")
    assert found["cuda"] == {"bars": [1]}
    assert found["parts"]["good"]["limit"] > 50
    grandchild = int(re.search(r"grandchild (\d+)", found["parts"]["hangs"]["tail"]).group(1))
    assert not runs(grandchild)
    assert "grandchild" in session.log.read_text()


def test_report_is_written_though_a_worker_hangs(session):
    """Imitate pytest with xdist, which waits at SIGINT for workers that may hang in the driver."""
    leader = """
import signal, subprocess, sys
deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
worker = subprocess.Popen([sys.executable, "-c", deaf])
try:
    worker.wait()
finally:
    worker.wait()
    print("report")
"""
    assert session.run([Part("tests", python(leader), 2), Part("later", python(""), 58)]) == ["tests"]
    tail = record(session)["parts"]["tests"]["tail"]
    assert "deaf" in tail
    assert "report" in tail


def test_what_a_part_leaves_running_is_stopped(session):
    leaves = "import subprocess; print('grandchild', subprocess.Popen(['sleep', '60']).pid)"
    assert session.run([Part("leaves", python(leaves), 5)]) == []
    assert "tail" not in record(session)["parts"]["leaves"]
    assert not runs(int(re.search(r"grandchild (\d+)", session.log.read_text()).group(1)))


def test_tests_that_hang_keep_the_report_of_those_before(session, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 20.0)
    (tmp_path / "test_it.py").write_text("def test_a(): pass\ndef test_b():\n    import time; time.sleep(60)\n")
    pytest_ = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    command = [*pytest_, f"--junitxml={tmp_path}/junit-tests.xml", tmp_path / "test_it.py"]
    assert session.run([Part("tests", command, 8), Part("later", python(""), 50)]) == ["tests"]
    assert record(session)["parts"]["tests"]["tests"]["passed"] == 1


def test_tests_that_are_all_skipped_did_not_pass(session, tmp_path):
    suite = '<testsuites><testsuite tests="2" failures="0" errors="0" skipped="2"/></testsuites>'
    write = python(f"open({str(tmp_path / 'junit-tests.xml')!r}, 'w').write({suite!r})")
    assert session.run([Part("tests", write, 5)]) == ["tests"]
    assert record(session)["parts"]["tests"]["outcome"] == "skipped: no test ran"


def test_backend_that_cannot_run_is_skipped_with_its_reason(session, tmp_path):
    write = python(f"open({str(tmp_path / 'part.json')!r}, 'w').write('{{\"skipped\": \"no nvcc\"}}')")
    assert session.run([Part("rows", write, 5, keep="cuda")]) == ["rows"]
    assert record(session)["parts"]["rows"]["outcome"] == "skipped: no nvcc"


def test_rows_that_found_no_time_are_named(session, tmp_path):
    found = {"lines": ["a: late"], "parts": {"a": {"skipped": "late"}, "b": {"rows": []}}}
    write = python(f"open({str(tmp_path / 'part.json')!r}, 'w').write({json.dumps(found)!r})")
    assert session.run([Part("rows", write, 5, keep="cuda")]) == ["rows"]
    assert record(session)["parts"]["rows"]["outcome"] == "passed, but skipped a"
    assert record(session)["cuda"]["parts"]["b"] == {"rows": []}


def test_results_of_two_runs_are_joined():
    joined = {}
    parts.join(joined, {"bars": [1], "parts": {"a": 1}, "environment": {"commit": "x"}})
    parts.join(joined, {"bars": [2], "parts": {"b": 2}, "environment": {"commit": "x"}})
    assert joined == {"bars": [1, 2], "parts": {"a": 1, "b": 2}, "environment": {"commit": "x"}}


def test_vital_part_that_fails_ends_the_session(session):
    assert session.run([Part("vital", python("raise SystemExit(2)"), 5, vital=True), Part("a", python(""), 5)]) == [
        "vital"
    ]
    assert list(record(session)["parts"]) == ["vital"]


def test_second_try_is_made_only_after_the_first_failed(session):
    again = Part("again", python(""), 0, unless="first")
    assert session.run([Part("first", python(""), 5), again, Part("last", python(""), 5)]) == []
    assert "again" not in record(session)["parts"]
    assert session.run([Part("first", python("raise SystemExit(1)"), 5), again, Part("last", python(""), 5)]) == [
        "first"
    ]
    assert record(session)["parts"]["again"]["outcome"] == "passed"


def test_nothing_runs_beside_what_is_timed(session, tmp_path):
    """Stop a part that runs beside others before a timed part starts."""
    file = tmp_path / "pid"
    beside = python(f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    look = f"""
import sys, time
from pathlib import Path
while not (file := Path({str(file)!r})).exists() or not file.read_text(): time.sleep(0.01)
stat = Path("/proc", file.read_text(), "stat")
there = stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
sys.exit(there != (sys.argv[1] == "there"))
"""
    plan = [
        Part("warm", beside, 0, beside=True),
        Part("before", [*python(look), "there"], 9),
        Part("timed", [*python(look), "gone"], 9, timed=True),
    ]
    assert session.run(plan) == []
    assert record(session)["parts"]["warm"]["outcome"] == "stopped"


def test_unused_time_goes_to_later_parts(session):
    session.run([Part("a", python(""), 20), Part("b", [*python("import sys; print(sys.argv[1])"), parts.SECONDS], 30)])
    found = record(session)["parts"]
    assert found["a"]["limit"] == 30
    assert found["b"]["limit"] > 55
    assert int(session.log.read_text().split()[-1]) == pytest.approx(found["b"]["limit"] - processes.GRACE, abs=1)


def test_log_keeps_the_ends_of_a_long_output(session, monkeypatch):
    monkeypatch.setattr(parts, "LONGEST", 1000)
    session.run(
        [Part("talks", python("print('first'); print('x' * 5000); print('last')"), 5), Part("b", python(""), 5)]
    )
    text = session.log.read_text()
    assert len(text) < 2000
    assert re.search(r"first\nx+\n\[\.\.\.\]\nx+\nlast\n\n== b", text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_leaves_a_complete_record(number, tmp_path):
    code = f"""
import signal, sys
sys.path.insert(0, {str(ROOT)!r})
from bench.gpu import gpu_check, parts, processes
processes.GRACE = 1.0
hangs = parts.Part("hangs", [sys.executable, "-c", {HANGS!r}], 60)
gpu_check.Plan.gpu = lambda plan: [parts.Part("first", [sys.executable, "-c", ""], 5), hangs]
sys.argv = ["gpu_check", "--rehearse", "--out", {str(tmp_path)!r}]
sys.exit(gpu_check.main())
"""
    process = subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True)
    log = tmp_path / "gpu.txt"
    while not log.exists() or not (found := re.search(r"^grandchild (\d+)", log.read_text(), re.MULTILINE)):
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    outcomes = {name: p["outcome"] for name, p in json.loads((tmp_path / "gpu.json").read_text())["parts"].items()}
    assert outcomes == {"first": "passed", "hangs": "interrupted"}
    assert not runs(int(found.group(1)))


@NO_GPU
def test_no_gpu_is_one_clear_line(tmp_path):
    done = gpu_check_py("--out", tmp_path)
    assert done.returncode == 2
    assert done.stdout.count("nothing can be measured") == 1
    assert json.loads((tmp_path / "gpu.json").read_text())["versions"]["torch"] == version("torch")


@NO_GPU
def test_every_op_without_a_gpu_is_one_clear_line():
    done = subprocess.run([sys.executable, "-m", "bench.gpu.every_op"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "no CUDA device is visible: nothing to call\n"


def test_missing_things_are_named_with_what_they_cost(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = preflight.missing(preflight.tools() | {"torch": "2.11"})
    for name in ("nvcc", "cmake", "ninja", "git", "triton", "pytest-xdist"):
        assert sum(line.startswith(f"{name} is missing: ") for line in lines) == 1
    assert not any(line.startswith("torch ") for line in lines)


def raises(error):
    def function(*_, **__):
        raise error

    return function


def test_torch_that_cannot_use_the_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(RuntimeError, match=re.escape(f"torch {torch.__version__} is built without CUDA")):
        preflight.device()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="no CUDA device is visible"):
        preflight.device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Quadro")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
    monkeypatch.setattr(torch, "zeros", raises(RuntimeError("no kernel image is available\nmore")))
    with pytest.raises(RuntimeError, match=r"does not run on Quadro, sm_61 \(no kernel image is available\)$"):
        preflight.device()


def test_commit_is_none_without_git_or_its_folder(monkeypatch, tmp_path, without_git):
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert checkout.commit() is None
    monkeypatch.setattr(checkout, "ROOT", ROOT)
    monkeypatch.setenv("PATH", without_git)
    assert checkout.commit() is None
