"""Visual description grounded decoding: describe first, then prefer the tokens that the description supports."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from decoding.ask import Answer, Ask, Sampling
from decoding.strategies.parameters import DescriptionTokens, Plausibility
from decoding.strategy import TEXT_SIDE, Captured, Program, Step, Strategy, Tensors
from decoding.tensors import nucleus, only, plausible

DESCRIBE = (
    "You will be asked about this image: {question}\n"
    "Do not answer yet. If it is a photo, name all objects in front and behind with their colours, shapes and numbers, "
    "and how they relate. If it is a chart, table or document, give all its numbers and words. "
    "Please describe this image in detail."
)
GROUNDED = "The input image is described as follows: {description} {question}"


class VDGD(Strategy):
    """z(w) <- -reduce_j KL(onehot_w || P_j) for the tokens w of a plausible set S, -inf elsewhere.

    P_1 ... P_N are the distributions from which the tokens of the model's own description of the picture were drawn.
    The divergence of a one-hot is -log P_j(w), so what the answer is drawn from has a closed form over S:
    `min` P(w) ~ max_j P_j(w), `mean` P(w) ~ (prod_j P_j(w))^(1/N), `sum` P(w) ~ prod_j P_j(w).
    One vector over the vocabulary is kept for that, whatever the length of the description. The answer's own logits
    matter only through S: the `top_p` nucleus at `temperature`, or the tokens with p(w) >= beta max p.
    Ghosh et al., ICLR 2025, arXiv:2405.15683.

    Deviations from the official code:
    - It divides the divergence by the size of the vocabulary, by a slip of `batchmean`, which leaves next to uniform
      choice within S. `official_scale` brings that back.
    - The description may be 512 tokens long, not 1024, to leave room for the answer, and its prompt is worded anew,
      with the same content. The optional contrast with a text-only model is left out.
    - The plausible set by `beta` is in the paper; the code has only the nucleus.
    """

    name = "vdgd"
    paper = "arXiv:2405.15683"

    reduction: Annotated[
        Literal["min", "mean", "sum"], Field(description="Over the tokens of the description: closest, average, all.")
    ] = "min"
    truncation: Annotated[Literal["nucleus", "plausibility"], Field(description="How the plausible set is cut.")] = (
        "nucleus"
    )
    temperature: Annotated[float, Field(ge=0.01, le=100, description="Of the nucleus.")] = 0.5
    top_p: Annotated[float, Field(gt=0, le=1, description="Probability that the nucleus holds.")] = 0.5
    beta: Plausibility = 0.1
    description_tokens: DescriptionTokens = 512
    description_prompt: Annotated[
        str,
        Field(min_length=1, max_length=4096, description="Asks for it; {question} stands for the user's question."),
        TEXT_SIDE,
    ] = DESCRIBE
    official_scale: Annotated[bool, Field(description="Divide by the vocabulary, as the official code does.")] = False

    def run(self, ask: Ask) -> Program:
        ask.prompt.require_pictures(self.name)
        question = ask.prompt.question
        # Not `ask.but(...)`: branches and strategies that `ask` already has belong to the answer, not to this question.
        describe = ask.prompt.with_question(self.description_prompt.replace("{question}", question))
        described: Answer = yield Ask(describe, Sampling(max_tokens=self.description_tokens), digest=self)
        assert described.memory is not None, "an answer has at least one token"
        grounded = GROUNDED.format(description=described.text.strip(), question=question)
        return ask.but(prompt=ask.prompt.with_question(grounded)).remember(self, described.memory)

    def digest(self, memory: Tensors, captured: Captured) -> Tensors:
        assert captured.logits is not None, "a description is digested token by token"
        told = captured.logits.log_softmax(dim=-1, dtype=torch.float32)  # [vocab]
        if not memory:
            return {"told": told, "tokens": told.new_ones(1)}
        merged = torch.maximum(memory["told"], told) if self.reduction == "min" else memory["told"] + told
        return {"told": merged, "tokens": memory["tokens"] + 1}

    def logits(self, step: Step) -> Tensor:
        support = step.memory["told"]
        if self.reduction == "mean":
            support = support / step.memory["tokens"]
        if self.official_scale:
            support = support / support.shape[-1]
        keep = self.candidates(step.raw)
        if step.scores is not step.raw:  # a strategy inside this one may have ruled tokens out
            keep = keep & (step.scores > -torch.inf)
        return only(support.to(step.scores.dtype), keep)

    def candidates(self, raw: Tensor) -> Tensor:
        """S, as a mask [..., vocab]."""
        if self.truncation == "nucleus":
            return nucleus(raw, self.temperature, self.top_p)
        return plausible(raw, self.beta)
