"""Cache of prompt prefixes up to the end of their images, shared by requests about the same images."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from decoding.hf_engine.kv_cache.aligned_cache import KVState
from decoding.prompt import Prompt
from decoding.text.prompt_encoder import ModelInputs, PromptEncoder

ExtraValues = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """All that a prefix's keys and values depend on, where no strategy acts inside the model. Nothing is hashed away.

    Attributes:
        ids: Token ids up to the last image token.
        image_keys: Keys of the images: pixels and noise.
        extras: Other inputs of the model, as InstructBLIP's question for the Q-Former.
        cache_salt: Salt of the request. Requests with different salts share no prefix.
    """

    ids: tuple[int, ...]
    image_keys: tuple[str, ...]
    extras: tuple[ExtraValues, ...]
    cache_salt: str | None = None

    def __len__(self) -> int:
        return len(self.ids)


class PrefixCache:
    """LRU cache of prefixes, limited in bytes. The worker thread owns it; other threads read its counters.

    Attributes:
        queries: Prompt tokens that were looked up.
        hits: Prompt tokens that were found.
    """

    def __init__(self, encoder: PromptEncoder, image_token_id: int, max_bytes: int) -> None:
        self.image_token_id = image_token_id
        self.max_bytes = max_bytes
        self.bytes = 0
        self.queries = 0
        self.hits = 0
        # These inputs follow from the images or the ids. Idefics3's pixel mask alone would be millions of numbers.
        self._derived_inputs = {*encoder.processor.image_processor.model_input_names, *encoder.family.per_token}
        self._entries: OrderedDict[PrefixKey, KVState] = OrderedDict()

    def build_key(self, prompt: Prompt, inputs: ModelInputs, cache_salt: str | None = None) -> PrefixKey | None:
        """Build the key of a prompt's prefix. The prefix leaves at least one token of the prompt.

        Args:
            prompt: The prompt.
            inputs: The same prompt, encoded.
            cache_salt: Salt of the request.

        Returns:
            The key; None if the prompt has no image, or the cache is off.
        """
        image_positions = (inputs.ids[:-1] == self.image_token_id).nonzero()
        if not len(image_positions) or not self.max_bytes:
            return None
        extra_names = sorted(inputs.extras.keys() - self._derived_inputs)
        return PrefixKey(
            tuple(inputs.ids[: int(image_positions[-1]) + 1].tolist()),
            tuple(image.key for image in prompt.images),
            tuple((name, tuple(inputs.extras[name].flatten().tolist())) for name in extra_names),
            cache_salt,
        )

    def get(self, key: PrefixKey, prompt_tokens: int) -> KVState | None:
        """Look up a prefix, and count the lookup.

        Args:
            key: Key of the prefix.
            prompt_tokens: Length of the whole prompt.

        Returns:
            The prefix's state, or None.
        """
        self.queries += prompt_tokens
        if key not in self._entries:
            return None
        self.hits += len(key)
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: PrefixKey, state: KVState) -> None:
        """Store a copy of a prefix's state, unless it alone exceeds the limit. The least recently used go first."""
        if key in self._entries or state.nbytes > self.max_bytes:
            return
        self._entries[key] = KVState(state.clone_key_values(), state.next_position)
        self.bytes += state.nbytes
        while self.bytes > self.max_bytes:
            self.bytes -= self._entries.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Drop all entries. The counters stay."""
        self._entries.clear()
        self.bytes = 0
