"""What few steps make meaningless in a prompt, in sentences for the person who typed it.

With 4 steps a quarter is the finest share there is, and a distilled model draws without guidance, which AND
and a negative prompt work through. Other tools ignore such things without a word.
"""

from __future__ import annotations

from collections.abc import Iterator

from fewstep.prompt.grammar import Plan, shortlist
from fewstep.prompt.schedule import Edit


def few_step_warnings(plan: Plan, *, guidance_scale: float, negative_prompt: str = "") -> tuple[str, ...]:
    """Say what of a plan has no effect, or another one than it seems to have.

    Args:
        plan: from `fewstep.prompt.grammar.parse`.
        guidance_scale: 1 is no guidance; so is 0, as diffusers' distilled pipelines have it.
        negative_prompt: as typed.

    Returns:
        At most 21 sentences: without repetition, 20 and a count of the others.
    """
    sentences: list[str] = []
    for subprompt in plan.subprompts:
        for edit in subprompt.edits:
            sentences += _about(edit, plan.num_inference_steps)
    if guidance_scale in (0.0, 1.0):
        off = f"guidance {guidance_scale:g} is no guidance"
        if len(plan.subprompts) > 1:
            sentences.append(
                f"AND needs guidance, and {off}: of the {len(plan.subprompts)} prompts only the first is "
                "drawn; write one prompt, or draw with guidance"
            )
        if negative_prompt.strip():
            sentences.append(f"the negative prompt has no effect: it works through guidance, and {off}")
    return shortlist(sentences)


def _about(edit: Edit, steps: int) -> Iterator[str]:
    if not any(edit.drawn):
        return  # it stands inside an arm that is never drawn: that one is spoken of
    if steps == 1:
        shown = edit.arms[edit.drawn.index(True)]
        yield f"{edit.source}: with 1 step nothing can change on the way; only {_named(shown)} is drawn"
        return
    if edit.share is not None and 0.0 < edit.share < steps and not _is_whole(edit.share):
        after = f"after step {edit.last_step}" if edit.last_step else "before the first step"
        yield (
            f"{edit.source}: this is {edit.share:.3g} of {steps} steps, and there are only whole ones: "
            f"it changes {after}"
        )
    for arm, drawn in zip(edit.arms, edit.drawn, strict=True):
        if not drawn and arm:
            yield f"{edit.source}: {_named(arm)} is never drawn in {steps} steps"


def _is_whole(share: float) -> bool:
    return abs(share - round(share)) < 1e-6


def _named(arm: str) -> str:
    return f'"{arm}"' if arm else "nothing"
