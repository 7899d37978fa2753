"""The receipt: strategy, parameters and cost."""

from __future__ import annotations

from tests.server.conftest import FakeServer, chat_request, image_messages


async def test_receipt_has_parameters_branches_and_passes(server: FakeServer) -> None:
    body = {"strategy": "blind+focus", "blind": {"alpha": 2.5}, "grounding": True}
    response = await server.openai.chat.completions.create(
        **chat_request(messages=image_messages()), extra_body={"decoding": body}
    )
    assert response.model_extra is not None
    receipt = response.model_extra["onlyseen"]
    timings = receipt.pop("timings")
    assert receipt == {
        "strategy": "blind+focus",
        "parameters": {"blind": {"alpha": 2.5}, "focus": {}},
        "branches": ["blind/none", "grounding/blind"],
        "steps": 5,
        "forward_passes": 2 + 3 * 5,  # the probe's two prompts, then three rows a step
        "changed_steps": None,
    }
    assert timings["decode"] == 0.5
    assert timings["total"] >= timings["prepare"] >= 0


async def test_changed_steps_add_up_over_choices(server: FakeServer) -> None:
    response = await server.chat(n=2)
    assert response.json()["onlyseen"]["changed_steps"] == 4


async def test_strategy_answer_costs_its_extra_requests(server: FakeServer) -> None:
    response = await server.chat(model="tiny:vote+blind", messages=image_messages())
    receipt = response.json()["onlyseen"]
    assert response.json()["choices"][0]["message"]["content"] == "A cat on a mat."
    assert (receipt["forward_passes"], receipt["branches"]) == (2 * 2 * 5, [])
