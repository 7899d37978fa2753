"""Visual description grounded decoding: restrict tokens by their likelihood under a generated description."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from decoding.logits_ops import mask_logits, plausibility_mask, top_p_mask
from decoding.parameters import DescriptionTokens, Plausibility
from decoding.requests import Answer, GenerateRequest, SamplingParams
from decoding.strategy import TEXT_SIDE, Activations, Program, Step, Strategy, Tensors

DESCRIBE = (
    "You will be asked about this image: {question}\n"
    "Do not answer yet. If it is a photo, name all objects in front and behind with their colours, shapes and numbers, "
    "and how they relate. If it is a chart, table or document, give all its numbers and words. "
    "Please describe this image in detail."
)
GROUNDED = "The input image is described as follows: {description} {question}"


class VDGD(Strategy):
    """z(w) <- -reduce_j KL(onehot_w || P_j) for the tokens w of a plausible set S, -inf elsewhere.

    P_1 ... P_N, each [vocab], are the distributions from which the tokens of the model's own description of the image
    were drawn. The divergence of a one-hot is -log P_j(w). So the distribution of the answer has a closed form over S:
    `min` P(w) ~ max_j P_j(w), `mean` P(w) ~ (prod_j P_j(w))^(1/N), `sum` P(w) ~ prod_j P_j(w). The state is one
    [vocab] vector, whatever the length of the description. The answer's own logits matter only through S: the `top_p`
    nucleus at `temperature`, or the tokens with p(w) >= beta max p.

    Source: Ghosh et al., ICLR 2025, arXiv:2405.15683.

    Deviations from the official code:
    - The code divides the divergence by the size of the vocabulary, through the reduction `batchmean`. This leaves a
      nearly uniform choice within S. `official_scale` restores it.
    - The code always samples. Here the request's temperature applies, and its default of 0 is greedy. A temperature of
      1 with `official_scale` samples as the code does.
    - The description has at most 512 tokens, not 1024, to leave room for the answer. Its prompt has other words with
      the same content. The optional contrast with a text-only model is left out.
    - The plausible set by `beta` is in the paper. The code has only the nucleus.
    """

    name = "vdgd"
    paper = "arXiv:2405.15683"
    official_code = "Sreyan88/VDGD, licence not checked"
    neutral = {"truncation": "plausibility", "beta": 1}
    needs_images = True

    reduction: Annotated[
        Literal["min", "mean", "sum"],
        Field(description="Reduction over the tokens of the description: closest, average or all."),
    ] = "min"
    truncation: Annotated[Literal["nucleus", "plausibility"], Field(description="Rule of the plausible set.")] = (
        "nucleus"
    )
    temperature: Annotated[float, Field(ge=0.01, le=100, description="Temperature of the nucleus.")] = 0.5
    top_p: Annotated[float, Field(gt=0, le=1, description="Total probability of the nucleus.")] = 0.5
    beta: Plausibility = 0.1
    description_tokens: DescriptionTokens = 512
    description_prompt: Annotated[
        str,
        Field(
            min_length=1,
            max_length=4096,
            description="Prompt of the description; {question} is replaced by the user's question.",
        ),
        TEXT_SIDE,
    ] = DESCRIBE
    official_scale: Annotated[bool, Field(description="Divide by the vocabulary, as the official code does.")] = False

    def run(self, request: GenerateRequest) -> Program:
        question = request.prompt.question
        # Not `request.replace`: its branches and stack belong to the final answer, not to the description.
        describe = request.prompt.with_question(self.description_prompt.replace("{question}", question))
        described: Answer = yield GenerateRequest(
            describe, SamplingParams(max_tokens=self.description_tokens), updates_state=True
        )
        assert described.state is not None, "an answer has at least one token"
        grounded = GROUNDED.format(description=described.text.strip(), question=question)
        return request.replace(prompt=request.prompt.with_question(grounded)).with_state(described.state)

    def update_state(self, state: Tensors, activations: Activations) -> Tensors:
        assert activations.logits is not None, "a generation request captures logits"
        logprobs = activations.logits.log_softmax(dim=-1, dtype=torch.float32)  # [vocab]
        if not state:
            return {"support": logprobs, "tokens": logprobs.new_ones(1)}
        support = state["support"]
        merged = torch.maximum(support, logprobs) if self.reduction == "min" else support + logprobs
        return {"support": merged, "tokens": state["tokens"] + 1}

    def logits(self, step: Step) -> Tensor:
        support = step.state["support"]
        if self.reduction == "mean":
            support = support / step.state["tokens"]
        if self.official_scale:
            support = support / support.shape[-1]
        keep = self.mask_candidates(step.raw)
        if step.scores is not step.raw:  # an inner strategy may have ruled tokens out
            keep = keep & (step.scores > -torch.inf)
        return mask_logits(support.to(step.scores.dtype), keep)

    def mask_candidates(self, raw: Tensor) -> Tensor:
        """Compute S as a mask, [..., vocab]."""
        if self.truncation == "nucleus":
            return top_p_mask(raw, self.temperature, self.top_p)
        return plausibility_mask(raw, self.beta)
