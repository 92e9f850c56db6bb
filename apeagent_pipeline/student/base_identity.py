"""Who a base model is to other people: its Hugging Face id, revision and licence."""

import json
from dataclasses import dataclass
from pathlib import Path

from apeagent_pipeline.settings import SMOLLM2

_APACHE = "https://www.apache.org/licenses/LICENSE-2.0"
_LICENSES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("apache-2.0", "Apache-2.0", _APACHE),
    "Qwen/Qwen2.5-3B": ("other", "qwen-research", "https://huggingface.co/Qwen/Qwen2.5-3B/blob/main/LICENSE"),
    "Qwen/Qwen2.5-0.5B": ("apache-2.0", "Apache-2.0", _APACHE),
    "Qwen/Qwen2.5-1.5B": ("apache-2.0", "Apache-2.0", _APACHE),
}
_EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct@12fd25f77366fa6b3b4b768ec3050bf629380bac"


@dataclass(frozen=True)
class BaseIdentity:
    """The base model under the name that others know it by.

    Attributes:
        hub_id: Id on the Hugging Face hub; the folder's name for a base that is only a folder.
        revision: Commit or tag on the hub, or None.
        license: Licence in the words of the hub's model cards.
        license_name, license_link: Its usual name and address.
        is_published: Whether the hub knows the base.
        note: What a user of the adapter should know about the base it was trained on, or an empty text.
    """

    hub_id: str
    revision: str | None
    license: str
    license_name: str
    license_link: str
    is_published: bool = True
    note: str = ""

    @classmethod
    def of(cls, name: str, folder: Path) -> "BaseIdentity":
        """The identity of a base.

        Args:
            name: The setting ``APEAGENT_STUDENT`` that the adapter was trained with.
            folder: Where the base lies; a snapshot of the hub's cache is named after its commit.
        """
        if name != SMOLLM2 and (name == folder.name or Path(name).expanduser().is_dir()):
            return cls(
                Path(name).name, None, "other", "that of the base model", "", is_published=False,
                note="The base model is a folder of its owner; give its path when you load the adapter.",
            )  # fmt: skip
        note = ""
        if name == SMOLLM2:
            name = _EMBEDDED
            note = (
                "The adapter was trained on these weights as restored from a Q4_1 GGUF file. How it answers on the "
                "published weights was not measured."
            )
        hub_id, _, revision = name.partition("@")
        if folder.parent.name == "snapshots":
            revision = folder.name
        kind, license_name, link = _LICENSES.get(hub_id, ("other", "that of the base model", ""))
        return cls(hub_id, revision or None, kind, license_name, link or f"https://huggingface.co/{hub_id}", note=note)


def identity_of(adapter: Path, base: Path) -> BaseIdentity:
    """Identity of the base model of an adapter, by the name in the adapter's config."""
    lora = json.loads((adapter / "adapter_config.json").read_text())
    return BaseIdentity.of(lora["base_model_name_or_path"] or base.name, base)
