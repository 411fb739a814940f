"""Parameters of 03_train that contradict each other, found before anything starts.

`sketch run`, a plan and the notebook's own `check` cell all ask here. Each rule names
both sides and the way out. torch is imported only where the model itself has to be
asked. Limits: what depends on the data (folds, classes, pictures) is not known here.
"""

from collections.abc import Mapping
from typing import Any

from sketchlib import workspace
from sketchlib.training import recipe as recipes
from sketchlib.training import recipes as recipe_files
from sketchlib.training import sources
from sketchlib.training.network import Network, asks_batch_norm

Values = Mapping[str, Any]


def check_settings(values: Values) -> None:
    """Raise unless the parameters of 03_train go together.

    Args:
        values: every parameter; `augment` may name the winner of a race that is still
            to be run.
    Raises:
        ValueError: two settings contradict, a name is unknown, or the model has not
            what is asked of it.
        FileNotFoundError: a file of weights is named that is not there.
    """
    known = dict(values)
    if recipe_files.is_winner(known["augment"]):
        known["augment"] = "none"
    recipe = workspace.pick(recipes.Recipe, known)
    network = workspace.pick(Network, known)
    network.check()
    _check_clashes(recipe, known)
    recipes.check_shared(recipe, known["processes"])
    if known["targets"] != "combined" or known["superclasses"]:
        _check_targets(known)
    if known["bank_views"] or known["banks"]:
        recipes.check_banked(recipe)
        network.check_banked()
    if _asks_the_model(network, recipe):
        network.check_form(recipe)


def _check_targets(values: Values) -> None:
    from sketchlib.data import manifest
    from sketchlib.training import composites

    asked = workspace.pick(composites.Asked, dict(values))
    columns = manifest.make_columns(list(values["columns"]))
    composites.check_asked(asked, values["head"], columns)


def _asks_the_model(network: Network, recipe: recipes.Recipe) -> bool:
    """Whether something is asked that only the built model can answer."""
    asks = network.lora_rank or network.head == "transplant" or recipe.unfreeze_last
    asks = asks or network.head_layers != "linear" or len(recipe.progressive)
    asks = asks or asks_batch_norm(network, recipe)
    return bool(asks) or network.model not in sources.BUNDLED


def _check_clashes(recipe: recipes.Recipe, values: Values) -> None:
    """Settings that are each allowed, but together do nothing or something else."""
    mixes = recipe.mixup_alpha > 0 or recipe.cutmix_alpha > 0
    share = recipe.batch_size / values["processes"]
    banked = bool(values["bank_views"] or values["banks"])
    last = max((stage.epoch + 1 for stage in recipes.make_stages(recipe)), default=1)
    clashes = {
        "`mixup_alpha` or `cutmix_alpha` mixes pictures, but `mix_off_epochs` is "
        f"{recipe.mix_off_epochs} of {recipe.epochs} `epochs`, so that no epoch is "
        "left; lower it": mixes and recipe.mix_off_epochs >= recipe.epochs,
        "mixing pairs the pictures of a batch, but `batch_size` gives a process "
        f"{share:g}, which is odd, so that none would be mixed; make it even": mixes
        and share % 2 != 0,
        f"`curriculum` or `progressive` changes something in epoch {last}, but there "
        f"are {recipe.epochs} `epochs`; raise `epochs`": last > recipe.epochs,
        f"`target_accuracy` is looked at after {recipe.target_epochs} epochs, but "
        f"there are {recipe.epochs}; lower `target_epochs`": (
            recipe.target_accuracy > 0 and recipe.target_epochs > recipe.epochs
        ),
        "`budget_minutes` counts the epochs of a fold from what those before it took, "
        "but `fold_jobs` trains them at once; set one of them off": (
            values["budget_minutes"] > 0 and values["fold_jobs"] != 1
        ),
        "`processes` share each batch and `fold_jobs` train whole folds, both on the "
        "same machine; set one of them to 1": (
            values["processes"] > 1 and values["fold_jobs"] != 1
        ),
        "`find_lr` measures the rate of the whole model, but heads on a feature bank "
        "have another; set `find_lr: false`": values["find_lr"] and banked,
    }
    for told, holds in clashes.items():
        if holds:
            raise ValueError(told)
