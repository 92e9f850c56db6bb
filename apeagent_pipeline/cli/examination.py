"""The findings of ``apeagent doctor``: one for each thing that a run needs."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from apeagent_pipeline.artifacts.files import StorageError
from apeagent_pipeline.chain.days import days_between
from apeagent_pipeline.chain.source import RpcSource
from apeagent_pipeline.defs.instance import open_instance, prepare_home, require_engine
from apeagent_pipeline.defs.resources import Runtime
from apeagent_pipeline.defs.watcher import LogWatcher
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.settings import Settings, SettingsError, mask_url

_GIB = 2**30
_NEEDED_GIB = {"demo": 3, "laptop": 3, "full": 60}


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    state: Literal["ok", "note", "wrong"]
    part: str
    finding: str
    remedy: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at home, disk, history, storage, engine, swap source, teacher, student and GPU, one after the other."""
    try:
        home = prepare_home(settings).parent
    except SettingsError as error:
        yield Finding("wrong", "home", str(error), "set APEAGENT_HOME to a folder you own")
        return
    yield Finding("ok", "home", str(home))
    yield _disk(settings)
    yield _history(settings)
    try:
        runtime = Runtime(settings, LogWatcher())
        runtime.store.prove_writable()
    except (SettingsError, StorageError, OSError) as error:
        yield Finding("wrong", "storage", str(error), "see APEAGENT_STORAGE in apeagent config")
        return
    yield Finding("ok", "storage", settings.storage_url)
    yield _engine(settings)
    yield from _swap_source(runtime)
    yield _teacher(settings)
    yield _student(runtime)
    yield _gpu(settings)


def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(settings.home.absolute()).free / _GIB
    needed = _NEEDED_GIB[settings.profile]
    if free < needed:
        return Finding("wrong", "disk", f"{free:.1f} GiB free", f"free {needed} GiB, or move APEAGENT_HOME")
    return Finding("ok", "disk", f"{free:.0f} GiB free")


def _history(settings: Settings) -> Finding:
    try:
        with open_instance(settings) as instance:
            runs = instance.get_runs_count()
    except SettingsError as error:
        return Finding("wrong", "history", str(error), "see APEAGENT_POSTGRES_URL in apeagent config")
    place = mask_url(settings.postgres_url.get_secret_value()) if settings.postgres_url else "SQLite below home"
    return Finding("ok", "history", f"{runs:,} runs, {place}")


def _engine(settings: Settings) -> Finding:
    try:
        require_engine(settings)
    except SettingsError as error:
        return Finding("wrong", "engine", str(error), "see APEAGENT_ENGINE and APEAGENT_RAY_ADDRESS in apeagent config")
    where = f"Ray at {mask_url(settings.ray_address)}" if settings.engine == "ray" else "this machine"
    return Finding("ok", "engine", where)


def _swap_source(runtime: Runtime) -> Iterator[Finding]:
    try:
        source = runtime.source
        first, last = source.days()
        pool = source.pool
    except Exception as error:  # any failure of a node or file is a finding, not a crash
        yield Finding(
            "wrong", "swaps", str(error), "see APEAGENT_RPC_URLS and APEAGENT_SWAPS_ARCHIVE in apeagent config"
        )
        return
    yield Finding("ok", "swaps", f"{source.name}: days {first} to {last}, chain {pool.chain_id}")
    if isinstance(source, RpcSource):
        yield _pace(source)
    noted = [
        day
        for day in days_between(first, last)
        if source.name == "archive" and source.day_notes(day)["notes"] != "none"
    ]
    if noted:
        what = f"{len(noted)} days may be incomplete, the first is {noted[0]}: {source.day_notes(noted[0])['notes']}"
        yield Finding("note", "archive", what, "see apeagent import FILE --dry-run")
    name = f"{pool.token0.symbol}-{pool.token1.symbol} {pool.pool_id}"
    if pool.has_dynamic_fee:
        yield Finding("note", "pool", f"{name}, dynamic fee", "its swaps and features can be made, a model cannot")
    elif pool.has_hooks:
        yield Finding("note", "pool", f"{name}, hooks", "what its hooks do to a swap is not simulated")
    else:
        yield Finding("ok", "pool", name)


def _pace(source: RpcSource) -> Finding:
    try:
        return Finding("ok", "reading", source.estimate())
    except ApeagentError as error:
        return Finding("wrong", "reading", str(error), "see APEAGENT_RPC_URLS in apeagent config")


def _teacher(settings: Settings) -> Finding:
    if settings.teacher == "rules":
        return Finding("ok", "teacher", "the embedded rule-based policy")
    name = f"{settings.teacher_model} at {mask_url(settings.teacher_base_url)}"
    if settings.teacher_api_key is None and "127.0.0.1" not in name and "localhost" not in name:
        return Finding("wrong", "teacher", f"{name}: no key", "set APEAGENT_TEACHER_API_KEY, or APEAGENT_TEACHER=rules")
    import openai

    key = settings.teacher_api_key.get_secret_value() if settings.teacher_api_key else "none"
    try:
        models = {
            each.id for each in openai.OpenAI(base_url=settings.teacher_base_url, api_key=key, timeout=10).models.list()
        }
    except openai.OpenAIError as error:
        return Finding("wrong", "teacher", f"{name}: {type(error).__name__}", "check the URL, the key and the server")
    if settings.teacher_model not in models:
        return Finding("wrong", "teacher", f"{name}: no such model there", f"one of {', '.join(sorted(models)[:5])}")
    return Finding("ok", "teacher", name)


def _student(runtime: Runtime) -> Finding:
    try:
        folder = runtime.student_base()
    except Exception as error:  # as above: a finding
        return Finding("wrong", "student", str(error), "set APEAGENT_STUDENT to a folder or another model")
    return Finding("ok", "student", f"{runtime.settings.student} in {folder}")


def _gpu(settings: Settings) -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("ok", "GPU", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        return Finding("ok", "GPU", "Apple MPS")
    if settings.profile == "full":
        return Finding("wrong", "GPU", "none", "the full profile needs a CUDA GPU and a CUDA build of torch")
    return Finding("note", "GPU", "none", "not needed for the demo")
