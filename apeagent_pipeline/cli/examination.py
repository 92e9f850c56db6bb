"""The findings of ``apeagent doctor``: one for each thing that a run needs."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Literal

from apeagent_pipeline.artifacts.files import StorageError
from apeagent_pipeline.chain.day_records import notes_in_words
from apeagent_pipeline.chain.days import days_between
from apeagent_pipeline.chain.source import RpcSource, SwapSource
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
    """Look at home, disk, history, storage, engine, swap source, teacher, student and device, one after the other."""
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
    yield from _device(settings)


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
    except SettingsError as error:
        yield Finding("wrong", "swaps", str(error), "correct the setting that is named here")
        return
    except Exception as error:  # any failure of a node or file is a finding, not a crash
        yield Finding(
            "wrong", "swaps", str(error), "see APEAGENT_RPC_URLS and APEAGENT_SWAPS_ARCHIVE in apeagent config"
        )
        return
    yield Finding("ok", "swaps", f"{source.name}: days {first} to {last}, chain {pool.chain_id}")
    if isinstance(source, RpcSource):
        yield _pace(source)
    if source.name == "archive":
        yield from _missing_swaps(source, first, last)
    name = f"{pool.token0.symbol}-{pool.token1.symbol} {pool.pool_id}"
    if pool.has_dynamic_fee:
        yield Finding(
            "note", "pool", f"{name}, dynamic fee", "swaps and features can be built, but no model can be trained"
        )
    elif pool.has_hooks:
        yield Finding("note", "pool", f"{name}, hooks", "the effect of its hooks on a swap is not simulated")
    else:
        yield Finding("ok", "pool", name)


def _missing_swaps(source: SwapSource, first: date, last: date) -> Iterator[Finding]:
    told = {day: "; ".join(notes_in_words(source.day_notes(day))) for day in days_between(first, last)}
    noted = [day for day, notes in told.items() if notes]
    if noted:
        what = f"{len(noted)} days may be incomplete, the first is {noted[0]}: {told[noted[0]]}"
        yield Finding("note", "archive", what, "see apeagent import FILE --dry-run")


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
    from apeagent_pipeline.distillation.teachers.server_check import check_server
    from apeagent_pipeline.distillation.teachers.server_config import checked_key
    from apeagent_pipeline.distillation.teachers.teacher import TeacherError

    try:
        key = checked_key(settings.teacher_api_key)
    except TeacherError as error:
        return Finding("wrong", "teacher", f"{name}: {error}", "set APEAGENT_TEACHER_API_KEY")
    found = check_server(settings.teacher_base_url, settings.teacher_model, key)
    if found.problem:
        return Finding("wrong", "teacher", f"{name}: {found.problem}", found.remedy)
    price = settings.teacher_prices.get(settings.teacher_model) or found.price
    told = (
        [] if price is None else [f"{price[0]:g} USD for a million tokens read, {price[1]:g} USD for a million written"]
    )
    told += [] if found.credit_usd is None else [f"{found.credit_usd:,.2f} USD of credit"]
    return Finding("ok", "teacher", ", ".join([name, *told]))


def _student(runtime: Runtime) -> Finding:
    try:
        folder = runtime.student_base()
    except Exception as error:  # as above: a finding
        return Finding("wrong", "student", str(error), "set APEAGENT_STUDENT to a folder or another model")
    return Finding("ok", "student", f"{runtime.settings.student} in {folder}")


def _device(settings: Settings) -> Iterator[Finding]:
    import torch

    from apeagent_pipeline.device import DeviceError, chosen_device, number_format

    try:
        device = chosen_device()
    except DeviceError as error:
        yield Finding("wrong", "device", str(error), "see APEAGENT_DEVICE in apeagent config")
        return
    if device.type == "cuda":
        yield Finding("ok", "device", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    elif device.type == "mps":
        yield Finding("ok", "device", "Apple MPS")
    elif settings.profile == "full":
        yield Finding("wrong", "device", "CPU", "the full profile needs a CUDA GPU and a CUDA build of torch")
    else:
        yield Finding("ok", "device", f"CPU, {torch.get_num_threads()} threads")
    yield Finding("ok", "number format", str(number_format(device)))
