"""models list, show, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from batchline.cli import quantize, traffic
from batchline.cli.output import Json, busy, group, tell, tell_json, tell_table
from batchline.cli.places import FOLDER, Folder, load_settings, open_client, opened_store

app = group("List, show and import models; say who gets their jobs.")
app.command()(traffic.promote)
app.command()(traffic.traffic)
app.command()(quantize.quantize)


@app.command("list")
def list_models(*, as_json: Json = False) -> None:
    """List the models of the catalogue."""
    with open_client() as client:
        models = client.models()
    if as_json:
        tell_json(models)
        return
    tell_table(
        ["model", "versions", "production", "inputs", "outputs"],
        [(m.id, ", ".join(v.version for v in m.versions), m.aliases.get("production", ""),
          _tensors(m.versions[-1].inputs) if m.versions else "",
          _tensors(m.versions[-1].outputs) if m.versions else "") for m in models],
    )  # fmt: skip


@app.command()
def show(name: Annotated[str, typer.Argument(help="The model's name.")], *, as_json: Json = False) -> None:
    """Show a model's versions, tensors and policy."""
    with open_client() as client:
        model = client.model(name)
    if as_json:
        tell_json(model)
        return
    for version in model.versions:
        tell_table(
            [f"{model.id}@{version.version}", ""],
            [
                ("takes", "text" if version.text else _tensors(version.inputs)),
                ("gives", _tensors(version.outputs)),
                ("digest", version.digest),
                ("bytes", f"{version.size_bytes:,}"),
                *((name, value) for name, value in version.policy.items()),
            ],
        )


def _tensors(tensors: tuple[dict[str, object], ...]) -> str:
    shown: list[str] = []
    for tensor in tensors:
        shape = cast("list[int | None]", tensor.get("shape") or [])
        axes = ", ".join("any" if axis is None else str(axis) for axis in shape)
        shown.append(f"{tensor.get('name')} {tensor.get('dtype')} [{axes}]")
    return ", ".join(shown)


@app.command("import")
def import_model(
    name: Annotated[str, typer.Argument(help="The model's name; a new one, or one that gets its next version.")],
    path: Annotated[
        Path, typer.Argument(exists=True, help="An .onnx or .pt2 file, or a folder with model.onnx or model.pt2.")
    ],
    *,
    max_batch_size: Annotated[int | None, typer.Option(min=1, help="Most rows of one forward pass.")] = None,
    max_queue_delay_microseconds: Annotated[
        int | None, typer.Option("--max-queue-delay-us", min=0, help="How long a free device waits for more rows.")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="Which workers run it.")] = None,
    padding: Annotated[
        Literal["none", "pad"] | None, typer.Option(help="Fill free axes up, or only equal rows.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Rows are texts: the tokenizer's file in the folder.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="With --tokenizer: most tokens of a row.")] = None,
    folder: Folder = FOLDER,
    as_json: Json = False,
) -> None:
    """Check an ONNX or PyTorch model and add it as a new version.

    It goes into the repository (BATCHLINE_MODELS, else ./models), into the blob store (BATCHLINE_BLOBS), from where
    workers without that folder fetch it, and into the catalogue.

    The options are what model.toml says in the folder; given ones are written over it. Needs the database, not the API.
    """
    from batchline import registry
    from batchline.data import places_of
    from batchline.data.blobs import Blobs
    from batchline.data.model_blobs import ModelBlobs

    policy: dict[str, object] = {
        "max_batch_size": max_batch_size,
        "max_queue_delay_microseconds": max_queue_delay_microseconds,
        "pool": pool,
        "padding": {"mode": padding} if padding else None,
    }
    text = {"tokenizer": tokenizer, "max_length": max_length}
    given = {
        table: values
        for table, all_values in (("policy", policy), ("text", text))
        if (values := {key: value for key, value in all_values.items() if value is not None})
    }
    settings = load_settings(folder)
    with opened_store(settings) as store, busy(f"checking {path} …"):
        content = _over(_toml_beside(path), given) if given else None
        spec = registry.import_model(
            settings.models,
            name,
            path,
            store.catalogue.register_model,
            content,
            publish=ModelBlobs(Blobs(places_of(settings))).publish,
        )
    tell_json(spec) if as_json else tell(f"{spec.ref} is in the catalogue; workers take it up by themselves.")


def _toml_beside(path: Path) -> dict[str, object]:
    import tomllib

    from batchline.errors import ModelError

    try:
        return tomllib.loads((path / "model.toml").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise ModelError(f"{path / 'model.toml'} cannot be used: {e}.") from e


def _over(under: dict[str, object], over: dict[str, dict[str, object]]) -> dict[str, object]:
    merged = dict(under)
    for table, values in over.items():
        merged[table] = {**cast("dict[str, object]", merged.get(table) or {}), **values}
    return merged
