"""A plug-in with a small strategy for every role; the page "Write a plug-in" quotes these files."""

from eagle.plugin import hookimpl
from five_roles.acceptance import MATCH
from five_roles.attention import NAIVE
from five_roles.features import JOINED
from five_roles.fitted import FITTED_FAN
from five_roles.head import ECHO
from five_roles.loss import CHOICE
from five_roles.tree import FAN


@hookimpl
def eagle_feature_extractors():
    return [JOINED]


@hookimpl
def eagle_draft_heads():
    return [ECHO]


@hookimpl
def eagle_tree_builders():
    return [FAN, FITTED_FAN]


@hookimpl
def eagle_attention_backends():
    return [NAIVE]


@hookimpl
def eagle_acceptance_rules():
    return [MATCH]


@hookimpl
def eagle_training_losses():
    return [CHOICE]
