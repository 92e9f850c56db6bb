"""The student: its base model, the LoRA adapter, promotion, and the exported models."""

import json
from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from apeagent_pipeline.artifacts.provenance import provenance
from apeagent_pipeline.defs.declaration import OWNER, declare, launched_config
from apeagent_pipeline.defs.metadata import PROMOTED_NOW, WHY, experiments_in_words, picture
from apeagent_pipeline.defs.resources import STUDENT_BASE, Runtime
from apeagent_pipeline.evaluation.canary.config import failures_of
from apeagent_pipeline.student.fine_tuning import FineTuningConfig
from apeagent_pipeline.student.gguf import ExportConfig
from apeagent_pipeline.student.promotion import explanation, history, history_page, promote, reason_for


def student_assets(runtime: Runtime) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """``student_base_model`` (external), ``lora_adapter``, ``promoted_adapter``, ``fused_model``, ``ollama_model``."""
    base_model = dg.AssetSpec(
        STUDENT_BASE,
        group_name="student",
        kinds={"huggingface"},
        owners=[OWNER],
        description=f"The student before training: {runtime.settings.student}",
    )

    return [
        base_model,
        _lora_adapter(runtime),
        _promoted_adapter(runtime),
        _fused_model(runtime),
        _ollama_model(runtime),
    ]


def _lora_adapter(runtime: Runtime) -> dg.AssetsDefinition:
    @dg.asset(
        **declare(
            runtime.settings,
            "student",
            {"pytorch", "huggingface"},
            code="8",
            config=runtime.profile.lora_adapter,
            pool="training",
            memory_gib=4,
            gpu=True,
            made="on_policy",
        ),
        deps=[STUDENT_BASE],
    )
    def lora_adapter(context: dg.AssetExecutionContext, distillation_dataset: Path) -> dg.MaterializeResult:
        """The LoRA adapter of the student, in peft's layout, and its training curve."""
        from apeagent_pipeline.student.fine_tuning import fine_tune, training_figure

        config, seed = launched_config(context, FineTuningConfig)
        progress = runtime.watcher.started(context)
        out = runtime.scratch("work/lora_adapter")
        curve = fine_tune(
            runtime.student_base(),
            distillation_dataset,
            config,
            seed,
            out,
            checkpoint_dir=runtime.scratch("checkpoints/lora_adapter"),
            progress=progress,
            base_name=runtime.settings.student,
        )
        return dg.MaterializeResult(
            value=out,
            metadata={
                "loss": float(curve["loss"][-1]),
                "valid_loss": float(curve["valid_loss"][-1]),
                "train_examples": int(curve["train_examples"]),
                "training": picture("training curve", training_figure(curve)),
            },
        )

    return lora_adapter


def _promoted_adapter(runtime: Runtime) -> dg.AssetsDefinition:
    @dg.asset(
        **declare(runtime.settings, "student", {"safetensors"}),
        config_schema={
            "experiments": dg.Field(
                bool,
                default_value=False,
                description="Promote the adapter even if it, or one of its inputs, was launched with options other "
                "than the profile's",
            )
        },
    )
    def promoted_adapter(
        context: dg.AssetExecutionContext, lora_adapter: Path, canary_eval: Path
    ) -> dg.MaterializeResult:
        """The adapter in service: the newest one that passed its canary check and is not shown to be worse.

        An adapter that was made with other options than the profile's is an experiment. It goes into service only if
        this asset is launched with `experiments: true`. `apeagent ask` and `apeagent export` use the adapter in
        service; `apeagent rollback` returns to the previous one.
        """
        runtime.watcher.started(context)
        manifest = runtime.store.whole("lora_adapter")
        experiments = manifest.experiments | runtime.store.whole("canary_eval").experiments
        allowed = context.op_execution_context.op_config["experiments"]
        out = runtime.scratch("work/promoted_adapter")
        report = json.loads((canary_eval / "report.json").read_text())
        before = history(runtime.store)
        wrong = promote(
            runtime.store,
            lora_adapter,
            manifest.data_version,
            report,
            failures=[*failures_of(report), *([] if allowed else _against_experiments(experiments))],
            origins=provenance(runtime.store, "lora_adapter", runtime.externals),
            out=out,
        )
        serving = history(runtime.store)[-1]
        context.log.info(f"in service: {serving.adapter}" + (f"; {'; '.join(wrong)}" if wrong else ""))
        return dg.MaterializeResult(
            value=out,
            metadata={
                "page": dg.MetadataValue.md(explanation(manifest.data_version, report, before, wrong)),
                "in_service": serving.adapter,
                PROMOTED_NOW: not wrong,
                WHY: "; ".join(wrong) or reason_for(manifest.data_version, report, before),
                "history": dg.MetadataValue.md(history_page(runtime.store)),
            },
        )

    return promoted_adapter


def _against_experiments(experiments: Mapping[str, str]) -> list[str]:
    if not experiments:
        return []
    how = "to promote it nevertheless, launch promoted_adapter with the option experiments: true"
    return [f"it is an experiment: {experiments_in_words(experiments)}; {how}"]


def _fused_model(runtime: Runtime) -> dg.AssetsDefinition:
    @dg.asset(
        **declare(runtime.settings, "student", {"pytorch", "safetensors"}, memory_gib=4, gpu=True, code="2"),
        deps=[STUDENT_BASE],
    )
    def fused_model(context: dg.AssetExecutionContext, promoted_adapter: Path) -> dg.MaterializeResult:
        """The adapter merged into the base model. Its logits equal those of base plus adapter within a tolerance."""
        from apeagent_pipeline.student.export import fuse

        runtime.watcher.started(context)
        out = runtime.scratch("work/fused_model")
        metrics = history(runtime.store)[-1].metrics
        difference = fuse(runtime.student_base(), promoted_adapter, out, metrics=metrics)
        return dg.MaterializeResult(value=out, metadata={"largest_logit_difference": float(difference)})

    return fused_model


def _ollama_model(runtime: Runtime) -> dg.AssetsDefinition:
    @dg.asset(
        **declare(
            runtime.settings, "student", {"gguf", "ollama"}, memory_gib=4, code="4", config=runtime.profile.ollama_model
        )
    )
    def ollama_model(
        context: dg.AssetExecutionContext, fused_model: Path, promoted_adapter: Path
    ) -> dg.MaterializeResult:
        """The merged model and the adapter alone as GGUF, with a Modelfile: ``ollama create apeagent -f Modelfile``."""
        from apeagent_pipeline.student.gguf import export_gguf

        config, _ = launched_config(context, ExportConfig)
        progress = runtime.watcher.started(context)
        out = runtime.scratch("work/ollama_model")
        export_gguf(
            fused_model,
            out,
            config,
            runtime.scratch("cache/converter"),
            progress,
            base=runtime.student_base(),
            adapter=promoted_adapter,
        )
        return dg.MaterializeResult(value=out)

    return ollama_model
