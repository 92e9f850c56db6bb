"""Which adapter the commands speak with."""

from pathlib import Path

from apeagent_pipeline.defs.runtime import Runtime
from apeagent_pipeline.defs.storage import StorageError
from apeagent_pipeline.settings import SettingsError


def trained_adapter(runtime: Runtime) -> Path:
    """The folder of the adapter that `ask`, `eval` and `export` use.

    Raises:
        SettingsError: There is none yet.
    """
    try:
        return runtime.store.local_folder("lora_adapter")
    except StorageError as error:
        raise SettingsError(f"There is no trained adapter yet ({error}). Run `apeagent demo` first.") from None
