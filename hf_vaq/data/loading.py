"""Find a data set by name, folder or file, and check what a training run needs of it before any work is done."""

from pathlib import Path

import datasets
import pyarrow.types
from PIL import Image

from .digits import load_digits

DIGITS = "digits"
_ACCEPTED = (
    "a local folder (Parquet files named after their splits, an image folder with one folder a class, or what "
    f"save_to_disk wrote), a .parquet file, {DIGITS!r} or a Hub id such as 'uoft-cs/cifar10'"
)


def load_dataset(
    name: str | Path, config: str | None = None, *, revision: str | None = None, streaming: bool = False
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Return all splits of a data set.

    Args:
        name: "digits" (bundled), a local Parquet file, a local folder (Parquet files named after their splits, an
            image folder with one folder a class, or what `save_to_disk` wrote), or the id of a data set on the Hub
            (the Hub resolves short names such as "imagenet-1k", which is "ILSVRC/imagenet-1k").
        config: name of the configuration where the data set has several.
        revision: branch, tag or commit of a data set on the Hub.
        streaming: return streams, which read the data set as it is asked for and keep nothing of it.

    Raises:
        ValueError: nothing is found under the name, or it is damaged; the message says what was tried.
    """
    path = Path(name).expanduser()
    if str(name) == DIGITS:
        return _streams(load_digits()) if streaming else load_digits()
    if path.exists():
        return _load_local(path, config, streaming)
    if _is_path(str(name)):
        raise ValueError(f"dataset is {str(name)!r}, and there is no such folder or file; accepted: {_ACCEPTED}.")
    try:
        return datasets.load_dataset(str(name), config, revision=revision, streaming=streaming)
    except Exception as error:
        raise ValueError(
            f"dataset is {str(name)!r}: no local folder or file of that name, and as a Hub id it cannot be loaded: "
            f"{_reason(error)}"
        ) from error


def _load_local(
    path: Path, config: str | None, streaming: bool
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    if path.is_file() and path.suffix != ".parquet":
        raise ValueError(f"dataset is the file {str(path)!r}; accepted: {_ACCEPTED}.")
    if path.resolve() == Path(path.resolve().anchor):
        # All files of the machine would be looked through.
        raise ValueError(f"dataset is {str(path)!r}, the root of the file system; accepted: {_ACCEPTED}.")
    try:
        if path.is_file():
            return datasets.load_dataset("parquet", data_files={"train": str(path)}, streaming=streaming)
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            saved = datasets.load_from_disk(str(path))
            splits = saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict(train=saved)
            return _streams(splits) if streaming else splits
        return datasets.load_dataset(str(path), config, streaming=streaming)
    except Exception as error:
        raise ValueError(
            f"dataset is {str(path)!r}, which cannot be read ({_reason(error)}); accepted: {_ACCEPTED}."
        ) from error


def _reason(error: Exception) -> str:
    """Say in one line what `datasets` met: on damaged files it raises errors of any type, some of them wrapped."""
    cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
    return " ".join(f"{type(cause).__name__}: {cause}".split())


def is_on_the_hub(name: str | Path) -> bool:
    """Tell whether `load_dataset` looks for this name on the Hub."""
    return str(name) != DIGITS and not Path(name).expanduser().exists() and not _is_path(str(name))


def select_split(
    dataset: datasets.DatasetDict | datasets.IterableDatasetDict, split: str
) -> datasets.Dataset | datasets.IterableDataset:
    """Return one split; slices such as "train[:500]" or "train[:10%]" are accepted, as in the datasets library.

    Of streams only whole splits are accepted.

    Raises:
        ValueError: the split does not exist (the message names those that do), or it holds no row.
    """
    available = ", ".join(dataset)
    name = split.split("[")[0]
    if name not in dataset:
        raise ValueError(f"split is {split!r}; the data set has: {available}.")
    if isinstance(dataset, datasets.IterableDatasetDict):
        if split not in dataset:
            raise ValueError(f"split is {split!r}; accepted of a stream: a whole split ({available}).")
        return dataset[split]
    try:
        spec = datasets.ReadInstruction.from_spec(split)
        (part,) = spec.to_absolute({key: len(rows) for key, rows in dataset.items()})
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"split is {split!r}; accepted: a name or a slice such as '{name}[:100]' ({error})."
        ) from error
    rows = dataset[name]
    if (part.from_, part.to) not in ((None, None), (0, len(rows))):
        rows = rows.select(range(part.from_ or 0, len(rows) if part.to is None else part.to))
    if len(rows) == 0:
        raise ValueError(f"split {split!r} is empty: it holds 0 of the {len(dataset[name])} rows of {name!r}.")
    return rows


def held_out_split(dataset: datasets.DatasetDict) -> str:
    """Return the name of the split to evaluate on where none is given: validation, valid, val or test, if present.

    Raises:
        ValueError: the data set has none of them.
    """
    for name in ("validation", "valid", "val", "test"):
        if name in dataset:
            return name
    raise ValueError(
        f"The data set has no validation or test split (it has: {', '.join(dataset)}); name the split to evaluate on, "
        "for instance eval_split 'train[80%:]' with train_split 'train[:80%]'."
    )


def prepare_columns(
    split: datasets.Dataset | datasets.IterableDataset, image_column: str, label_column: str
) -> datasets.Dataset | datasets.IterableDataset:
    """Check that both columns exist and that the first one holds images, and return the split with just those two.

    Of a stream that does not state its columns the first row is read.

    Raises:
        ValueError: a column is missing (the message names those there are) or holds no images, or a stream is empty.
    """
    if split.features is None:
        split = _with_features(split, image_column)
    for field, column in (("image_column", image_column), ("label_column", label_column)):
        if column not in split.column_names:
            raise ValueError(f"{field} is {column!r}; the data set has the columns: {', '.join(split.column_names)}.")
    split = split.select_columns([image_column, label_column])
    feature = split.features[image_column]
    if not isinstance(feature, datasets.Image):
        if not _can_hold_images(feature):
            raise ValueError(
                f"image_column is {image_column!r}, whose type is {_describe(feature)}; accepted: images, file names "
                "or encoded bytes."
            )
        split = split.cast_column(image_column, datasets.Image())
    return split


def _with_features(split: datasets.IterableDataset, image_column: str) -> datasets.IterableDataset:
    """Give a stream the features that its first row shows."""
    row = next(iter(split), None)
    if row is None:
        raise ValueError("The split is empty.")
    plain = {bool: "bool", int: "int64", float: "float64"}
    features = {name: datasets.Value(plain.get(type(value), "string")) for name, value in row.items()}
    if isinstance(row.get(image_column), (Image.Image, bytes, dict)):
        features[image_column] = datasets.Image()
    columns = [name for name, value in row.items() if name == image_column or type(value) in (*plain, str)]
    return split.select_columns(columns).cast(datasets.Features({name: features[name] for name in columns}))


def _streams(dataset: datasets.DatasetDict) -> datasets.IterableDatasetDict:
    return datasets.IterableDatasetDict({name: split.to_iterable_dataset() for name, split in dataset.items()})


def _is_path(name: str) -> bool:
    """Tell a path from a Hub id, which is `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix != ""


def _can_hold_images(feature: object) -> bool:
    """Accept what `datasets.Image` can be cast from: paths, bytes, or both as a struct."""
    if isinstance(feature, datasets.Value):
        storage = feature.pa_type
        return any(
            test(storage)
            for test in (
                pyarrow.types.is_string,
                pyarrow.types.is_large_string,
                pyarrow.types.is_binary,
                pyarrow.types.is_large_binary,
            )
        )
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


def _describe(feature: object) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
