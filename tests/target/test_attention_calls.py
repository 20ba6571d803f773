"""What layers ask of attention is what the model does, whatever its configuration says."""

import pytest
import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from eagle import Decoder, DecoderSpec
from eagle.cache.store import Step
from eagle.errors import TargetError
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext, Role, Scores
from eagle.target.attention_calls import window_of
from eagle.target.causal_lm import Target
from eagle.testing import tiny_head, tiny_target
from tests.families import config_of, model_of

CPU = torch.device("cpu")
PROMPT = [5, 9, 33, 7, 12, 60, 4]


def backend(name="sdpa"):
    strategy = default_registry().get(Role.ATTENTION, name).strategy
    return strategy.build(strategy.config(), BuildContext())


def greedy(target, count):
    with target.stock() as model:
        out = model.generate(
            torch.tensor([PROMPT]),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return tuple(out[0, len(PROMPT) :].tolist())


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"use_sliding_window": False}),
        ("mistral", {"layer_types": ["full_attention"] * 4}),
        ("mixtral", {"use_sliding_window": False}),
        ("phi3", {"layer_types": ["full_attention"] * 4}),
        ("starcoder2", {"use_sliding_window": False}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}),
        ("qwen2", {"use_sliding_window": False}),
    ],
)
def test_a_window_that_the_model_has_is_served_past_its_length(family, changes, tmp_path):
    target = Target(model_of(config_of(family, **changes)), None, family)
    tiny_head(target).save(tmp_path)
    spec = DecoderSpec(
        head={"name": "eagle", "weights": str(tmp_path)},
        tree={"name": "static", "branching": [8, 2, 1]},
    )
    found = Decoder.from_spec(spec, target=target).generate(
        PROMPT, max_new_tokens=60, ignore_eos=True
    )
    assert found.tokens == greedy(target, 60)
    windowed = family != "qwen2" or changes["use_sliding_window"]
    assert (24 in target.asked.windows) == windowed
    assert target.capacity == 256


class Products(TorchFunctionMode):
    """Counts products of linear layers."""

    made = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.made += func in (nn.functional.linear, torch.matmul)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_layers_are_asked_without_their_products(family):
    target = Target(model_of(config_of(family)), None, family)
    with Products() as products:
        asked = target.asked
        assert products.made <= 1  # the rotary angles
        with target.stock() as model:
            model(torch.tensor([PROMPT]))
        assert products.made > 7 * target.info.layers
    assert 24 in asked.windows
    assert target.layout.on


@pytest.mark.parametrize("positions", [30, 64, 5000, 2**21])
def test_masks_are_read_at_every_bound(positions):
    assert window_of(causal_mask_function, positions, CPU) is None
    window = sliding_window_causal_mask_function(24)
    assert window_of(window, positions, CPU) == 24
    none = torch.zeros(1, dtype=torch.int64)
    for wrong in (
        chunked_causal_mask_function(16, none),
        lambda b, h, q, k: k <= q + 1,
        lambda b, h, q, k: q >= 0,
        lambda b, h, q, k: (k <= q) & (q < 20),
    ):
        with pytest.raises(TargetError, match="neither causal nor a sliding window"):
            window_of(wrong, positions, CPU)


def test_a_window_as_long_as_all_positions_is_none():
    assert window_of(sliding_window_causal_mask_function(64), 64, CPU) is None


def test_an_unknown_argument_of_attention_is_refused_by_name(monkeypatch):
    target = tiny_target()
    body, forward = target.body, type(target.body).forward
    monkeypatch.setattr(
        type(body), "forward", lambda self, *a, **k: forward(self, *a, position_bias=1.0, **k)
    )
    with pytest.raises(TargetError, match="'position_bias'"):
        target.probe(backend())


class Plain:
    """A backend that declares nothing."""

    capturable = True

    def unsupported(self, device, dtype, head_dim):
        return None


@pytest.mark.parametrize(
    ("architecture", "words"),
    [("gpt-oss", "sinks and window"), ("gemma2", "softcap and window")],
)
def test_a_backend_that_declares_nothing_is_refused_where_more_is_asked(architecture, words):
    with pytest.raises(TargetError, match=f"does not serve {words}"):
        tiny_target(architecture).probe(Plain())


class Dropping:
    """Serves everything but one thing, and says that it serves that, too."""

    capturable = True
    modifiers = frozenset({"window", "softcap", "sinks"})

    def __init__(self, dropped):
        self.dropped, self.inner = dropped, backend()

    def unsupported(self, device, dtype, head_dim):
        return None

    def plan(self, step, query_heads, kv_heads, dtype, window=None):
        window = None if self.dropped == "window" else window
        return self.inner.plan(step, query_heads, kv_heads, dtype, window)

    def attend(self, query, keys, values, plan, scaling, scores=None):
        if scores is not None:
            kept = {name: value for name, value in vars(scores).items() if name != self.dropped}
            scores = Scores(**kept)
        return self.inner.attend(query, keys, values, plan, scaling, scores)


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("architecture", ["llama-gqa", "gpt-oss", "gemma2", "mistral-window"])
def test_right_passes_pass_the_probe_in_every_dtype(architecture, dtype):
    tiny_target(architecture, dtype=dtype).probe(Dropping(None))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize(
    ("architecture", "dropped"),
    [
        ("gpt-oss", "window"),
        ("gpt-oss", "sinks"),
        ("gemma2", "window"),
        ("mistral-window", "window"),
    ],
)
def test_the_probe_notices_what_a_backend_drops(architecture, dropped, dtype):
    target = tiny_target(architecture, dtype=dtype)
    for name, parameter in target.model.named_parameters():
        if "sinks" in name:
            parameter.data.fill_(1.5)
    with pytest.raises(TargetError, match="gives other logits"):
        target.probe(Dropping(dropped))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize(
    ("architecture", "changes", "dropped"),
    [
        ("gemma2", {"attn_logit_softcapping": 50.0}, "softcap"),
        ("gpt-oss", {}, "sinks"),
        ("mistral-window", {"sliding_window": 400}, "window"),
    ],
)
def test_what_a_backend_drops_is_noticed_where_the_probes_texts_do_not_need_it(
    architecture, changes, dropped, dtype
):
    model = tiny_target(architecture, **changes).model
    for name, parameter in model.named_parameters():
        if "sinks" in name:
            parameter.data.fill_(-20.0)
    target = Target(model.to(dtype), None, architecture)
    target.probe(Dropping(None))
    with pytest.raises(TargetError, match=rf"its values are off by .*{dropped}.*layers have"):
        target.probe(Dropping(dropped))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("architecture", "dropped"), [("gemma2", "softcap"), ("gpt-oss", "sinks")])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_half_precision_is_held_against_its_own_noise(architecture, dropped, dtype, seed):
    model = tiny_target(architecture, seed=seed).model
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "sinks" in name:
            parameter.data.normal_(generator=generator)
        elif "q_proj.weight" in name and architecture == "gemma2":
            parameter.data.mul_(8)  # scores that its cap bends
    target = Target(model.to(dtype), None, architecture)
    target.probe(Dropping(None))
    with pytest.raises(TargetError, match="gives other logits"):
        target.probe(Dropping(dropped))


def test_the_probe_notices_a_dropped_cap():
    with pytest.raises(TargetError, match="gives other logits"):
        tiny_target("gemma2", attn_logit_softcapping=0.5).probe(Dropping("softcap"))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("wrong", ["mask", "positions"])
def test_in_half_precision_the_probe_notices_a_wrong_tree(wrong, dtype, monkeypatch):
    tree = Step.tree

    def broken(lengths, depths, ancestors, span):
        ancestors = torch.ones_like(ancestors) if wrong == "mask" else ancestors
        return tree(lengths, depths * 2 if wrong == "positions" else depths, ancestors, span)

    monkeypatch.setattr(Step, "tree", broken)
    with pytest.raises(TargetError, match="gives other logits"):
        tiny_target(dtype=dtype).probe(backend())


@pytest.mark.parametrize("architecture", ["gpt-oss", "gemma2"])
def test_sinks_and_caps_are_served_in_bfloat16_with_the_models_own_distribution(architecture):
    model = tiny_target(architecture).model
    for name, parameter in model.named_parameters():
        if "q_proj.weight" in name and architecture == "gemma2":
            parameter.data.mul_(8)  # scores that its cap bends
    target = Target(model.to(torch.bfloat16), None, architecture)
    tokens = torch.randint(3, 64, (1, 60), generator=torch.Generator().manual_seed(0))
    step = Step.chain(torch.zeros(1, dtype=torch.int64), 60, 60)
    with torch.inference_mode():
        last, _ = target.forward(tokens, step, target.make_cache(1, 60), backend())
        found = target.logits(last).float().softmax(-1)
        with target.stock() as model:
            own = model(input_ids=tokens, use_cache=False).logits.float().softmax(-1)
    assert (found - own).abs().sum(-1).median() < 0.03  # with sinks dropped, 0.2 and more


def test_keys_and_values_of_two_sizes_are_refused_by_name():
    config = config_of("deepseek_v3")
    target = Target(model_of(config), None, "deepseek")
    with pytest.raises(TargetError, match="keys have 16 numbers a head and its values 8"):
        target.probe(backend())


def test_layers_that_hand_on_no_arguments_are_refused_with_no_advice_that_fails():
    target = Target(model_of(config_of("nemotron")), None, "nemotron")
    with pytest.raises(TargetError, match="do not hand the keyword arguments") as caught:
        target.probe(backend())
    assert "set_attn_implementation" not in str(caught.value)


def test_chunked_attention_is_refused_by_name():
    with pytest.raises(TargetError, match="chunked_attention"):
        Target(model_of(config_of("llama4_text")), None, "llama4")


def test_a_model_with_one_head_size_for_each_layer_is_refused_by_name():
    config = transformers.Gemma4TextConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=16,
        vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8,
    )
    with pytest.raises(TargetError, match="gemma4"):
        Target(model_of(config), None, "gemma4").probe(backend())
