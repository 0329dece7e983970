"""Extra-network tags."""

import pytest

from fewstep.prompt.networks import MAX_NETWORKS, Network, cut_networks


@pytest.mark.parametrize(
    ("tag", "network"),
    [
        ("<lora:ink>", Network(kind="lora", name="ink")),
        ("<lora:ink:0.8>", Network(kind="lora", name="ink", te=0.8, unet=0.8)),
        ("<lora:ink:0.8:-0.5>", Network(kind="lora", name="ink", te=0.8, unet=-0.5)),
        ("<lora:ink:1:1:16>", Network(kind="lora", name="ink", dyn=16)),
        ("<lora:ink:unet=0.3>", Network(kind="lora", name="ink", te=1.0, unet=0.3)),
        ("<lora:ink:te=0.3>", Network(kind="lora", name="ink", te=0.3, unet=0.3)),
        ("<lora:ink:0.1:0.2:te=0.9:dyn=4>", Network(kind="lora", name="ink", te=0.9, unet=0.2, dyn=4)),
        ("<lyco:ink:2>", Network(kind="lora", name="ink", te=2.0, unet=2.0)),
        ("<hypernet:old:0.7>", Network(kind="hypernet", name="old", te=0.7, unet=0.7)),
        ("<lora: a=b, <c : 1>", Network(kind="lora", name="a=b, <c")),
    ],
)
def test_tags(tag: str, network: Network) -> None:
    assert cut_networks(f"a {tag} fox") == ("a  fox", (network,), ())


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("<emb:x:1>", "kinds of networks are lora, lyco, hypernet"),
        ("<lora:ink:strong>", "'strong' is not a multiplier"),
        ("<lora:ink:nan>", "'nan' is not a multiplier"),
        ("<lora:ink:1e999>", "'1e999' is not a multiplier"),
        ("<lora:ink:1:1:0>", "dyn=0 is not a rank"),
        ("<lora:ink:dyn=1.5>", "dyn=1.5 is not a rank"),
        ("<lora: :1>", "it has no name"),
        ("<lora:te=1>", "it has no name"),
    ],
)
def test_tags_that_mean_nothing_are_cut_out_and_said(tag: str, reason: str) -> None:
    text, networks, (warning,) = cut_networks(f"fox{tag}")
    assert (text, networks) == ("fox", ())
    assert warning.startswith(f"{tag} is left out: ")
    assert reason in warning


@pytest.mark.parametrize("text", ["a < b > c", "<lora>", "<lora:>", "<lora:ink", "<:x>", "1<2: yes"])
def test_what_is_no_tag_stays(text: str) -> None:
    assert cut_networks(text) == (text, (), ())


def test_two_tags_and_their_order() -> None:
    text, networks, _ = cut_networks("<lora:b:1>x<lora:a:2>")
    assert text == "x"
    assert [network.name for network in networks] == ["b", "a"]


def test_the_number_of_networks_is_bounded_and_said() -> None:
    text, networks, (warning,) = cut_networks("<lora:x:1>" * 100)
    assert (text, len(networks)) == ("", MAX_NETWORKS)
    assert "first 64 of 100" in warning
