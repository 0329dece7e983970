"""The studio without a mouse: what every key does, and that it does nothing while somebody types."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Locator, Page

INSIDE = "() => Boolean(document.activeElement.closest('#keys')) || document.activeElement === document.body"


@pytest.fixture
def prompt(page: Page) -> Locator:
    page.locator("#live [data-part=state][data-state=idle]").wait_for()
    page.wait_for_function("() => window.fewstep.order()?.num_inference_steps")  # the form is known
    found = page.locator("#prompt textarea")
    page.wait_for_function("() => document.activeElement === document.querySelector('#prompt textarea')")
    return found


def chosen(page: Page) -> str | None:
    """Where the picture on the stage comes from."""
    return page.evaluate("document.querySelector('#live [data-part=now] img')?.src ?? null")


def test_weights_follow_the_rule_of_the_webui(page: Page, prompt: Locator) -> None:
    page.locator("#live [data-part=toggle]").click()
    prompt.fill("a red apple")
    prompt.evaluate("one => one.setSelectionRange(2, 5)")
    for key, text in (
        ("Control+ArrowUp", "a (red:1.1) apple"),
        ("Control+ArrowUp", "a (red:1.2) apple"),
        ("Control+ArrowDown", "a (red:1.1) apple"),
        ("Control+ArrowDown", "a red apple"),
        ("Control+ArrowDown", "a (red:0.9) apple"),
    ):
        page.keyboard.press(key)
        assert prompt.input_value() == text
    assert page.evaluate("(one => [one.selectionStart, one.selectionEnd])(document.activeElement)") == [3, 6]
    # Without a selection the word at the caret, or the brackets around it.
    for before, caret, after in (
        ("a red apple", 8, "a red (apple:1.1)"),
        ("a (red apple:1.3)", 5, "a (red apple:1.4)"),
        ("a (red apple)", 5, "a (red apple:1.2)"),
    ):
        prompt.fill(before)
        prompt.evaluate("(one, caret) => one.setSelectionRange(caret, caret)", caret)
        page.keyboard.press("Control+ArrowUp")
        assert prompt.input_value() == after
    page.keyboard.press("Control+z")
    assert prompt.input_value() == "a (red apple)"


def test_letters_and_digits_are_text_in_a_field_and_the_list_of_keys_is_a_dialog(
    page: Page, prompt: Locator
) -> None:
    page.locator("#live [data-part=toggle]").click()
    prompt.focus()
    text = "uevcf?/ 12345678"
    page.keyboard.type(text)
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second")
    assert prompt.input_value() == f"{text}\nsecond"
    dialog = page.locator("#keys")
    assert not dialog.is_visible()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    dialog.wait_for()
    for _ in range(4):
        page.keyboard.press("Tab")
        assert page.evaluate(INSIDE)
    page.keyboard.press("u")
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    page.keyboard.press("/")
    page.keyboard.type("x")
    assert prompt.input_value().count("/") == 1
    assert "x" in prompt.input_value()


def test_enter_draws_arrows_browse_and_letters_act_on_the_picture(
    page: Page, prompt: Locator, studio: Any
) -> None:
    page.locator("#live [data-part=toggle]").click()
    prompt.fill("a fox, noto style")
    prompt.press("Enter")  # live is off: as the button
    page.wait_for_function("() => document.querySelectorAll('#create-gallery img').length >= 4")
    page.wait_for_function("() => document.querySelector('#live [data-part=now] img')")
    page.evaluate("document.activeElement.blur()")
    first = chosen(page)
    different = "before => document.querySelector('#live [data-part=now] img').src !== before"
    page.keyboard.press("ArrowRight")
    page.wait_for_function(different, arg=first)
    second = chosen(page)
    page.keyboard.press("ArrowRight")
    page.wait_for_function(different, arg=second)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("f")
    page.locator("#live [data-part=star][aria-pressed=true]").wait_for()
    current = chosen(page)
    assert current is not None
    image_id = current.split("/images/")[1].split("/")[0]
    assert studio.get(f"/api/v1/images/{image_id}")["favourite"] is True
    stops = page.locator("#create-quality input[type=radio]")
    page.keyboard.press("2")
    page.wait_for_function("() => document.querySelectorAll('#create-quality input[type=radio]')[1].checked")
    assert stops.nth(1).is_checked()
