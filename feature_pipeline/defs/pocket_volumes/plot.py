"""An asset downstream of features, as in any Dagster project: a plot of every batch's pockets."""

import base64
import io
from typing import TYPE_CHECKING

import dagster as dg

from feature_pipeline.orchestration.assets.io_manager import FeaturePartitions
from feature_pipeline.orchestration.keys import batches_partitions, features_key

if TYPE_CHECKING:  # every process of Dagster imports this file
    import pandas as pd

DATASET = "structures"


@dg.asset(
    key=[DATASET, "plots", "pocket_volumes"],
    partitions_def=batches_partitions(DATASET),
    ins={"pockets": dg.AssetIn(features_key(DATASET, "pockets"))},
    group_name=DATASET,
    kinds={"matplotlib"},
)
def pocket_volumes(pockets: FeaturePartitions) -> dg.MaterializeResult[None]:
    """Volume and druggability of every pocket of a batch, read straight from S3."""
    (batch,) = pockets
    return plot_pockets(pockets.to_pandas(batch))


def plot_pockets(pockets: "pd.DataFrame") -> dg.MaterializeResult[None]:
    """Plot the pockets whose druggability is known. The metadata state how many have none.

    Args:
        pockets: One row per pocket, with the columns `volume` and `druggability`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    known = pockets.dropna(subset=["druggability"])
    axes.scatter(known["volume"].to_numpy(float), known["druggability"].to_numpy(float), s=12)
    axes.set(xlabel="volume (Å³)", ylabel="druggability", ylim=(0, 1))
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    encoded = base64.b64encode(picture.getvalue()).decode()
    return dg.MaterializeResult(
        metadata={
            "plot": dg.MetadataValue.md(f"![pockets](data:image/png;base64,{encoded})"),
            "pockets": len(pockets),
            "without_druggability": len(pockets) - len(known),
        }
    )
