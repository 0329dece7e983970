"""What there is, options and refusals: the unmodified `webuiapi` client against a whole server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import webuiapi

sys.path.insert(0, str(Path(__file__).parent))

from served import Served, serving

import fewstep

PACKAGE = Path(fewstep.__file__).parent

HTTP = httpx.Client(timeout=30)
SMALL: dict[str, Any] = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    data = tmp_path_factory.mktemp("a1111-lists")
    (data / "styles.csv").write_text('name,prompt,negative_prompt\nsketch,"pencil, {prompt}",colour\n')
    with serving(data) as served:
        yield served


@pytest.fixture
def api(server: Served) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1")


def post(server: Served, path: str, **body: Any) -> httpx.Response:
    return HTTP.post(f"{server.url}/sdapi/v1/{path}", json=body)


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({"sampler_name": "LMS"}, 404, "the nearest is 'PLMS'"),
        ({"scheduler": "beta"}, 404, "there are: automatic"),
        ({"styles": ["nothing"]}, 404, "sketch"),
        ({"override_settings": {"sd_model_checkpoint": "sd15"}}, 404, "there are: fake"),
        ({"override_settings": {"sd_model_checkpoint": "../../etc/passwd"}}, 404, "there are: fake"),
        ({"script_name": "x/y/z plot"}, 422, "not found"),
        ({"prompt": "a <lora:../../x:1>"}, 422, "not found"),
        ({"batch_size": 9, "n_iter": 9}, 422, "at most 16"),
        ({"steps": 1000}, 422, "at most 150"),
        ({"width": 4096, "height": 4096}, 422, "sizes that work: 64x64"),
        ({"width": 100_000}, 422, "16384"),
    ],
)  # fmt: skip
def test_what_there_is_not_is_refused_and_said(
    api: webuiapi.WebUIApi, given: dict[str, Any], status: int, words: str
) -> None:
    with pytest.raises(RuntimeError) as refused:
        api.txt2img(**{"prompt": "a dog", **given})
    assert refused.value.args[0] == status and words in refused.value.args[1]
    body = json.loads(refused.value.args[1])
    assert set(body) == {"error", "detail", "body", "errors"} and str(PACKAGE) not in refused.value.args[1]


def test_lists(api: webuiapi.WebUIApi) -> None:
    assert "Euler a" in api.util_get_sampler_names() and "DPM++ 2M" in api.util_get_sampler_names()
    assert {"karras", "automatic", "sgm_uniform"} <= set(api.util_get_scheduler_names())
    assert api.get_upscalers()[0]["name"] == "None" and api.get_latent_upscale_modes() == [{"name": "Latent"}]
    models = api.get_sd_models()
    assert models[0]["title"] == "fake [0000000000]" and models[0]["filename"] == "fake"
    assert all("/" not in str(one["filename"]) for one in models)
    assert api.get_prompt_styles()[0]["name"] == "sketch"
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    for nothing in (api.get_sd_vae, api.get_hypernetworks, api.get_face_restorers):
        assert nothing() == []
    assert isinstance(api.get_loras(), list) and isinstance(api.get_realesrgan_models(), list)
    assert set(api.get_embeddings()) == {"loaded", "skipped"}
    assert api.get_memory()["ram"]["total"] > 0 and "error" in api.get_memory()["cuda"]
    assert api.refresh_checkpoints() is None
    assert api.custom_get("script-info", baseurl=True) == api.custom_get("extensions", baseurl=True) == []


def test_loras_and_embeddings_say_no_path(
    server: Served, api: webuiapi.WebUIApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import save_file

    metadata = {"ss_output_name": "ink", "ss_train_data_dir": "/home/ann/pictures", "ss_network_dim": "4"}
    save_file({"x": np.zeros(1, dtype=np.float32)}, tmp_path / "inkstyle.safetensors", metadata=metadata)
    monkeypatch.setenv("FEWSTEP_LORAS", str(tmp_path))
    vectors = {"emb_params": np.zeros((2, 8), dtype=np.float32)}
    (tmp_path / "e").mkdir()
    save_file(vectors, tmp_path / "e" / "cat.safetensors")
    monkeypatch.setenv("FEWSTEP_EMBEDDINGS", str(tmp_path / "e"))
    one = next(entry for entry in api.get_loras() if entry["name"] == "inkstyle")
    assert one["alias"] == "ink" and one["path"] == "inkstyle"
    assert one["metadata"] == {"ss_output_name": "ink", "ss_network_dim": "4"}
    assert api.get_embeddings()["skipped"]["cat"]["vectors"] == 2  # the fake model takes none
    for answer in (api.get_loras(), api.get_embeddings(), api.get_cmd_flags(), api.get_options()):
        assert str(tmp_path) not in json.dumps(answer) and str(server.services.settings.data) not in str(
            answer
        )


def test_options_hold_for_the_requests_that_follow(server: Served, api: webuiapi.WebUIApi) -> None:
    try:
        assert api.set_options({"samples_format": "webp", "fewstep_student": "two"}) is None
        made = api.txt2img(prompt="a dog", steps=2, **SMALL)
        assert made.image.format == "WEBP" and made.info["extra_generation_params"]["Student"] == "two"
        assert api.get_options()["samples_format"] == "webp"
    finally:
        api.set_options({"samples_format": "png", "fewstep_student": "Automatic"})
    one = api.txt2img(prompt="a dog", override_settings={"samples_format": "jpg"}, **SMALL)
    assert one.image.format == "JPEG" and api.get_options()["samples_format"] == "png"
    try:
        given = {"samples_format": "jpg"}
        api.txt2img(prompt="a", override_settings=given, override_settings_restore_afterwards=False, **SMALL)
        assert api.get_options()["samples_format"] == "jpg"
    finally:
        api.set_options({"samples_format": "png"})


def test_only_runtime_safe_options_can_be_set(server: Served) -> None:
    """H19."""
    before = HTTP.get(f"{server.url}/sdapi/v1/options").json()
    refused = post(server, "options", outdir_samples="/elsewhere", samples_format="webp")
    assert refused.status_code == 422 and "outdir_samples" in refused.json()["detail"]
    fields = [
        *type(server.services.settings).model_fields,
        *type(server.services.settings.limits).model_fields,
    ]
    for name in fields:
        assert post(server, "options", **{name: "x"}).status_code == 422
    for name, value in {
        "randn_source": "GPU",
        "api_enable_requests": True,
        "sd_checkpoint_hash": "1",
    }.items():
        assert post(server, "options", **{name: value}).json() is None  # known, and fixed
    for name, value in {"sd_model_checkpoint": "nothing", "samples_format": "gif", "sd_vae": "x"}.items():
        assert post(server, "options", **{name: value}).status_code in (404, 422)
    assert HTTP.get(f"{server.url}/sdapi/v1/options").json() == before


def test_the_model_is_set_and_named(api: webuiapi.WebUIApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.util_set_model("Fake")
    assert "model changed to fake [0000000000]" in capsys.readouterr().out
    assert api.util_get_current_model() == "fake [0000000000]"
    for name in ("fake", "fake [0000000000]", "fake.safetensors", "0000000000", "0" * 64, "FAKE"):
        made = api.txt2img(prompt="a dog", override_settings={"sd_model_checkpoint": name}, **SMALL)
        assert made.info["sd_model_name"] == "fake"


def test_models_are_let_go_of_and_come_back(server: Served, api: webuiapi.WebUIApi) -> None:
    for path in ("unload-checkpoint", "reload-checkpoint"):
        assert post(server, path).json() == {}
    for path in ("refresh-vae", "refresh-loras", "refresh-embeddings", "refresh-checkpoints", "skip"):
        assert post(server, path).json() is None
    assert api.interrupt() == {} and api.skip() is None
    assert api.txt2img(prompt="a dog", **SMALL).image.size == (64, 64)


def test_what_is_not_done_here_says_the_command(server: Served) -> None:
    for path in ("create/embedding", "train/embedding", "create/hypernetwork", "train/hypernetwork"):
        answer = post(server, path, embedding_name="x")
        assert answer.status_code == 501 and "fewstep train" in answer.json()["detail"]


def test_h17_answers_tell_no_path(server: Served) -> None:
    data = str(server.services.settings.data)
    for path in ("cmd-flags", "options", "sd-models", "memory", "upscalers", "prompt-styles"):
        text = HTTP.get(f"{server.url}/sdapi/v1/{path}").text
        assert data not in text and "/work" not in text and "site-packages" not in text


def test_unknown_fields_are_ignored(server: Served) -> None:
    answer = post(server, "txt2img", prompt="a dog", distilled_cfg_scale=3.5, hr_cfg=1.0, **SMALL)
    assert answer.status_code == 200
