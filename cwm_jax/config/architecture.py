"""The architecture, in the words of Hugging Face's ``CwmConfig``, and its two ways to and from
``config.json``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

from cwm_jax.config.schema import check_positive, check_types, nearest_hint, required_fields

FULL_ATTENTION = "full_attention"
SLIDING_ATTENTION = "sliding_attention"

# Keys of a Hugging Face config.json that change neither the weights nor the logits of this
# architecture.
_HF_BOOKKEEPING = frozenset(
    """
    _name_or_path architectures auto_map chunk_size_feed_forward default_theta dtype
    id2label ignore_keys_at_rope_validation initializer_range is_encoder_decoder label2id
    model_type output_attentions output_hidden_states pretraining_tp problem_type
    return_dict torch_dtype transformers_version transformers_weights use_cache
    """.split()  # noqa: SIM905
)
# Keys that would change the computation, with the only value this architecture has.
_HF_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeParameters:
    """Rotary position embedding: plain (``default``) or with Llama 3's scaling (``llama3``).

    Attributes:
        rope_theta: base of the geometric series of wavelengths.
        rope_type: ``default`` during 8k pre-training, ``llama3`` from mid-training on (report).
        factor: divisor of the frequencies of long wavelengths; ``llama3`` only.
        low_freq_factor: wavelengths above ``original / low_freq_factor`` tokens are divided by
            ``factor``.
        high_freq_factor: wavelengths below ``original / high_freq_factor`` tokens are left alone.
        original_max_position_embeddings: context length in tokens before the scaling.
    """

    rope_theta: float = 1_000_000.0  # report
    rope_type: Literal["default", "llama3"] = "default"
    factor: float = 16.0  # report
    low_freq_factor: float = 1.0  # report
    high_freq_factor: float = 4.0  # report
    original_max_position_embeddings: int = 8192  # report

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(
            self, "rope_theta", "factor", "low_freq_factor", "original_max_position_embeddings"
        )
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"rope_parameters.high_freq_factor is {self.high_freq_factor}; expected more than "
                f"low_freq_factor ({self.low_freq_factor}): the blend divides by their difference"
            )

    @classmethod
    def from_hf(cls, mapping: Mapping[str, Any]) -> RopeParameters:
        """Reads either spelling: ``rope_parameters``, or ``rope_theta`` with ``rope_scaling``.

        Raises:
            ValueError: no theta, two spellings that disagree, a RoPE type other than the two
                supported, or a key that neither of them has.
        """
        beside = {} if mapping.get("rope_theta") is None else {"rope_theta": mapping["rope_theta"]}
        spellings = [
            cls._from_hf_dict(beside | _checked_dict(mapping, name), where=name)
            for name in ("rope_parameters", "rope_scaling")
            if mapping.get(name) is not None
        ] or [cls._from_hf_dict(beside, where="rope_parameters")]
        theta = beside.get("rope_theta", spellings[0].rope_theta)
        if len(set(spellings)) > 1 or theta != spellings[0].rope_theta:
            raise ValueError(
                "config.json: rope_parameters, rope_theta and rope_scaling disagree; drop one"
            )
        return spellings[0]

    @classmethod
    def _from_hf_dict(cls, values: Mapping[str, Any], *, where: str) -> RopeParameters:
        values = dict(values)
        rope_type = values.pop("type", "default")  # the oldest spelling
        rope_type = values.setdefault("rope_type", rope_type)
        names = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise ValueError(f"config.json: {where} has an unknown key {unknown[0]!r}")
        if rope_type not in ("default", "llama3"):
            raise ValueError(
                f"config.json: rope_type is {rope_type!r}; expected 'default' or 'llama3'"
            )
        needed = names if rope_type == "llama3" else ["rope_theta", "rope_type"]
        missing = [name for name in needed if values.get(name) is None]
        if missing:
            raise ValueError(
                f"config.json: {where} of type {rope_type!r} lacks {', '.join(missing)}"
            )
        return cls(**{name: values[name] for name in needed})

    def to_hf(self) -> dict[str, Any]:
        """The value of ``rope_parameters`` in config.json."""
        values = dataclasses.asdict(self)
        return (
            values
            if self.rope_type == "llama3"
            else {k: values[k] for k in ("rope_theta", "rope_type")}
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture, in the words of Hugging Face's ``CwmConfig``.

    Attributes:
        vocab_size: tokens, reserved ones included.
        hidden_size: width D of the residual stream.
        intermediate_size: width F of the SwiGLU.
        num_hidden_layers: layers L.
        num_attention_heads: query heads N.
        num_key_value_heads: key-value heads K; N must be a multiple of it.
        head_dim: width H of a head; N x H need not equal D.
        layer_types: one of ``full_attention`` or ``sliding_attention`` for each layer. Which layers
            are global is data of a checkpoint, never derived here.
        sliding_window: keys that a query of a sliding layer sees, its own included.
        rope_parameters: see ``RopeParameters``.
        rms_norm_eps: added to the mean square.
        max_position_embeddings: longest context in tokens that the weights are meant for.
        bos_token_id, eos_token_id, pad_token_id: recorded in exports; the model does not read them.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layer_types: tuple[str, ...]
    sliding_window: int | None = None
    rope_parameters: RopeParameters = RopeParameters()
    rms_norm_eps: float = 1e-5  # report
    max_position_embeddings: int = 131072  # report
    bos_token_id: int | None = 128000  # report
    eos_token_id: int | tuple[int, ...] | None = (128001, 128008, 128009)  # HF's default for CWM
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(
            self,
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "sliding_window",
            "rms_norm_eps",
            "max_position_embeddings",
        )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads}); each key-value head serves as "
                "many queries"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim is {self.head_dim}; expected an even number, for RoPE rotates pairs"
            )
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries; expected one for each of the "
                f"{self.num_hidden_layers} layers (num_hidden_layers)"
            )
        unknown = sorted(set(self.layer_types) - {FULL_ATTENTION, SLIDING_ATTENTION})
        if unknown:
            raise ValueError(
                f"layer_types holds {unknown}; expected only {FULL_ATTENTION!r} and "
                f"{SLIDING_ATTENTION!r}"
            )
        if SLIDING_ATTENTION in self.layer_types and self.sliding_window is None:
            raise ValueError(
                "layer_types has sliding_attention layers: set sliding_window (in tokens)"
            )

    @property
    def period(self) -> int:
        """Layers in the group that is scanned; see ``_shortest_period``."""
        return _shortest_period(self.layer_types)[0]

    @property
    def num_repeats(self) -> int:
        """How often the group is scanned; layers after ``num_repeats * period`` form the tail."""
        return _shortest_period(self.layer_types)[1]

    def window(self, layer_type: str) -> int | None:
        """Keys visible to a query of such a layer, its own included; None means no limit."""
        return self.sliding_window if layer_type == SLIDING_ATTENTION else None

    @classmethod
    def from_hf(cls, mapping: Mapping[str, Any]) -> ModelConfig:
        """Reads the content of a Hugging Face ``config.json`` (or ``CwmConfig.to_dict()``).

        Raises:
            ValueError: ``layer_types`` absent, a key with a value that this architecture does not
                have (biases, tied embeddings, dropout, another activation), or an unknown key that
                is set.
        """
        fields = {f.name for f in dataclasses.fields(cls)}
        rope_keys = {"rope_parameters", "rope_theta", "rope_scaling"}
        for name, only in _HF_FIXED.items():
            if mapping.get(name, only) != only:
                raise ValueError(
                    f"config.json: {name} is {mapping[name]!r}; CWM has {only!r} alone"
                )
        known = fields | rope_keys | _HF_BOOKKEEPING | set(_HF_FIXED)
        unknown = sorted(k for k, v in mapping.items() if k not in known and v not in (None, False))
        if unknown:
            raise ValueError(
                f"config.json: unknown key {unknown[0]!r} = {mapping[unknown[0]]!r}"
                f"{nearest_hint(unknown[0], known)}; refused because it may change the computation"
            )
        if mapping.get("layer_types") is None:
            raise ValueError(
                "config.json has no layer_types; which layers are global differs between published "
                "CWM configurations, so it is never guessed: write one kind for each layer"
            )
        missing = sorted(
            f.name
            for f in required_fields(cls)
            if mapping.get(f.name) is None and f.name != "head_dim"
        )
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}")
        values = {k: mapping[k] for k in fields & set(mapping) if k not in rope_keys}
        for name in ("layer_types", "eos_token_id"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        if values.get("head_dim") is None:
            values["head_dim"] = _hf_default_head_dim(
                mapping["hidden_size"], mapping["num_attention_heads"]
            )
        return cls(rope_parameters=RopeParameters.from_hf(mapping), **values)

    def to_hf(self) -> dict[str, Any]:
        """A ``config.json`` that transformers (4 and 5) and vLLM open as ``CwmForCausalLM``."""
        values = dataclasses.asdict(self)
        rope = self.rope_parameters.to_hf()
        scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
        values |= {
            "architectures": ["CwmForCausalLM"],
            "model_type": "cwm",
            "layer_types": list(self.layer_types),
            "eos_token_id": list(self.eos_token_id)
            if isinstance(self.eos_token_id, tuple)
            else self.eos_token_id,
            "rope_parameters": rope,
            "rope_theta": rope["rope_theta"],
            "rope_scaling": scaling if self.rope_parameters.rope_type == "llama3" else None,
        }
        return values | _HF_FIXED


def _checked_dict(mapping: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(mapping[name], dict):
        raise ValueError(f"config.json: {name} is {mapping[name]!r}; expected its keys and values")
    return mapping[name]


def _hf_default_head_dim(hidden_size: Any, num_attention_heads: Any) -> int:
    usable = isinstance(hidden_size, int) and isinstance(num_attention_heads, int)
    if not usable or num_attention_heads < 1:
        return 2  # ModelConfig refuses the other value and names it
    return hidden_size // num_attention_heads


@functools.lru_cache
def _shortest_period(kinds: tuple[str, ...]) -> tuple[int, int]:
    """(period, repeats) that stage the fewest layers: one period, scanned, and an unrolled tail."""

    def staged(period: int) -> tuple[int, int]:
        tail = len(kinds) - period * repeats(period)
        return period + tail, tail

    def repeats(period: int) -> int:
        count = 1
        while kinds[count * period : (count + 1) * period] == kinds[:period]:
            count += 1
        return count

    period = min(range(1, len(kinds) + 1), key=staged)
    return period, repeats(period)


def layer_types_3_to_1(num_hidden_layers: int, *, last_global: bool = False) -> tuple[str, ...]:
    """Layers 0, 4, 8, ... (and, if asked, the last) global, the rest local (report: 3:1)."""
    kinds = [FULL_ATTENTION if i % 4 == 0 else SLIDING_ATTENTION for i in range(num_hidden_layers)]
    if last_global:
        kinds[-1] = FULL_ATTENTION
    return tuple(kinds)
