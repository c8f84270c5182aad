"""Launchers. submitit and Ray are stand-ins here: the calls that are used of them, recorded; nothing of a cluster."""

import builtins
import os
import pickle
import signal
import sys
import types
from pathlib import Path

import pytest

from ctrlrl.sweep import launchers, process
from ctrlrl.sweep.launchers import make_launcher, run_cell
from ctrlrl.sweep.process import CellRun


def submitit(monkeypatch):
    seen = types.SimpleNamespace(executors=[], cancelled=0)

    class FakeJob:
        def __init__(self, call):
            self.call, self.over, self.failed, self.code = call, False, None, 0

        def done(self):
            return self.over

        def exception(self):
            return self.failed

        def result(self):
            return self.code

        def cancel(self):
            seen.cancelled += 1

    class AutoExecutor:
        def __init__(self, folder, cluster=None, **kwargs):
            self.folder, self.cluster, self.kwargs, self.parameters = folder, cluster, kwargs, {}
            seen.executors.append(self)

        def update_parameters(self, **kwargs):
            self.parameters |= kwargs

        def submit(self, call):
            return FakeJob(pickle.loads(pickle.dumps(call)))

    class DelayedSubmission:
        def __init__(self, call):
            self.call = call

    helpers = types.ModuleType("submitit.helpers")
    helpers.DelayedSubmission = DelayedSubmission
    module = types.ModuleType("submitit")
    module.AutoExecutor, module.helpers = AutoExecutor, helpers
    monkeypatch.setitem(sys.modules, "submitit", module)
    monkeypatch.setitem(sys.modules, "submitit.helpers", helpers)
    return seen


def test_submitit_gets_the_settings_under_its_own_names(monkeypatch, tmp_path):
    seen = submitit(monkeypatch)
    words = ["partition=gpu", "timeout_min=600", "gpus_per_node=1", "setup=[module load cuda]", "cluster=slurm"]
    words += ["additional_parameters={exclusive: true}", "max_num_timeout=7"]
    launcher = make_launcher("submitit", None, [f"launcher.{word}" for word in words], tmp_path)
    (executor,) = seen.executors
    assert (executor.folder, executor.cluster) == (tmp_path / "jobs", "slurm")
    assert executor.kwargs == {"slurm_max_num_timeout": 7}
    expected = {"slurm_partition": "gpu", "timeout_min": 600, "gpus_per_node": 1, "slurm_setup": ["module load cuda"]}
    expected |= {"slurm_additional_parameters": {"exclusive": True}, "slurm_signal_delay_s": 120}
    assert expected.items() <= executor.parameters.items()
    assert launcher.jobs > 10**6  # the queue is Slurm's


def test_a_slurm_job_is_judged_by_its_exit_code_and_a_lost_one_has_failed(monkeypatch, tmp_path):
    seen = submitit(monkeypatch)
    launcher = make_launcher("submitit", 2, [], tmp_path)
    job = launcher.submit(["seed=0"], tmp_path / "a", tmp_path / "a.log")
    assert isinstance(job.job.call, CellRun)
    assert job.poll() is None
    job.job.over, job.job.code = True, 130
    assert job.poll() == 130
    job.job.failed = RuntimeError("node lost")
    assert job.poll() == 1
    job.stop(at_once=False)
    assert seen.cancelled == 1


def test_before_a_time_out_the_cell_writes_its_checkpoint_and_the_job_is_queued_again(monkeypatch, tmp_path):
    submitit(monkeypatch)
    told = []

    class Process:
        def poll(self):
            return None

        def send_signal(self, number):
            told.append(number)

        def wait(self, timeout=None):
            return 130

    call = CellRun(("seed=0",), str(tmp_path / "a"), str(tmp_path / "a.log"))
    call._process = Process()
    again = call.checkpoint().call
    assert told == [signal.SIGINT]
    assert (again.words, again.folder, again._process) == (call.words, call.folder, None)


@pytest.mark.parametrize(("system", "told"), [("posix", [signal.SIGINT, "kill"]), ("nt", ["kill"])])
def test_a_local_cell_is_asked_to_stop_and_then_killed_where_windows_has_no_signal_for_it(monkeypatch, system, told):
    heard: list[object] = []
    job = launchers.LocalJob(types.SimpleNamespace(send_signal=heard.append, kill=lambda: heard.append("kill")))
    monkeypatch.setattr(launchers, "os", types.SimpleNamespace(name=system))
    job.stop(at_once=False)
    job.stop(at_once=True)
    assert heard == told


def ray(monkeypatch):
    seen = types.SimpleNamespace(init=None, options=None, ready=False, value=0, cancelled=[])

    class TaskCancelledError(Exception):
        pass

    def remote(**options):
        seen.options = options
        return lambda function: types.SimpleNamespace(remote=lambda *args: (function, args))

    def get(ref):
        if isinstance(seen.value, Exception):
            raise seen.value
        return seen.value

    module = types.ModuleType("ray")
    module.init = lambda **kwargs: setattr(seen, "init", kwargs)
    module.remote, module.get = remote, get
    module.wait = lambda refs, timeout: (refs, []) if seen.ready else ([], refs)
    module.cancel = lambda ref, force: seen.cancelled.append(force)
    seen.cancelled_error = TaskCancelledError("stopped")
    monkeypatch.setitem(sys.modules, "ray", module)
    return seen


def test_ray_gets_a_task_a_cell(monkeypatch, tmp_path):
    seen = ray(monkeypatch)
    launcher = make_launcher("ray", None, ["launcher.num_gpus=0.25", "launcher.address=auto"], tmp_path)
    assert (seen.init["address"], seen.options) == ("auto", {"num_cpus": 1.0, "num_gpus": 0.25, "max_retries": 0})
    job = launcher.submit(["seed=0"], tmp_path / "a", tmp_path / "a.log")
    assert job.ref == (run_cell, (("seed=0",), str(tmp_path / "a"), str(tmp_path / "a.log"), os.getcwd()))
    assert job.poll() is None
    seen.ready, seen.value = True, 2
    assert job.poll() == 2
    seen.value = RuntimeError("node lost")
    assert job.poll() == 1
    seen.value = seen.cancelled_error
    assert job.poll() == 130
    job.stop(at_once=False)
    assert seen.cancelled == [False]


def test_a_cancelled_cell_of_a_cluster_stops_cleanly(monkeypatch, tmp_path):
    told = []

    class Process:
        def __init__(self):
            self.waits = 0

        def poll(self):
            return None

        def send_signal(self, number):
            told.append(number)

        def wait(self, timeout=None):
            self.waits += 1
            if self.waits == 1:
                raise KeyboardInterrupt
            return 130

    answers = [None, Process()]  # the first time another process still writes to the log
    monkeypatch.setattr(process, "start", lambda *_: answers.pop(0))
    monkeypatch.setattr(process.time, "sleep", lambda _: None)
    monkeypatch.chdir("/")
    assert run_cell(("seed=0",), str(tmp_path / "a"), str(tmp_path / "a.log"), str(tmp_path)) == 130
    assert Path.cwd() == tmp_path
    assert told == [signal.SIGINT]


@pytest.mark.parametrize("name", ["submitit", "ray"])
def test_a_missing_package_names_the_extra(monkeypatch, tmp_path, name):
    genuine = builtins.__import__

    def without(module, *args, **kwargs):
        if module == name:
            raise ImportError(module)
        return genuine(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=rf"launcher={name} needs .*pip install 'ctrlrl\[launchers\]'"):
        make_launcher(name, None, [], tmp_path)


def test_unknown_launchers_and_settings_are_refused_in_one_line(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="unknown launcher 'slurm'"):
        make_launcher("slurm", None, [], tmp_path)
    with pytest.raises(ValueError, match=r"launcher\.partition=x: launcher=local has no settings"):
        make_launcher("local", None, ["launcher.partition=x"], tmp_path)
    submitit(monkeypatch)
    with pytest.raises(ValueError, match=r"unknown key partitoin; did you mean partition"):
        make_launcher("submitit", None, ["launcher.partitoin=x"], tmp_path)
    assert make_launcher("local", 3, [], tmp_path).jobs == 3
    assert make_launcher("local", None, [], tmp_path).jobs >= 1
    assert launchers.LAUNCHERS == ("local", "submitit", "ray")
