"""Text encoders: their states, what pads, what is cut off, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers

from gsnr.train import text
from tests.train.text_files import POSITIONS, WIDTH, WORDS, text_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_encoder(tmp_path_factory.mktemp("clip"))


def test_states_are_the_last_hidden_ones_of_all_positions(folder: Path) -> None:
    """Against the library's model on ids written down by hand: no mask, so that what pads has states of its own."""
    frozen = text.load(str(folder))
    assert frozen.shape == (POSITIONS, WIDTH) and not any(p.requires_grad for p in frozen.model.parameters())
    ids = torch.tensor([[1, 5, 7, 2, 0, 0], [1, 2, 0, 0, 0, 0], [1, 9, 3, 2, 0, 0]])
    with torch.no_grad():
        expected = transformers.CLIPTextModel.from_pretrained(folder)(ids).last_hidden_state
    found = frozen.encode(["red seven", "", "café green"])
    assert found.dtype == torch.float32 and found.shape == (3, POSITIONS, WIDTH)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(text.encode(str(folder), ["red seven"]), expected[:1], rtol=0, atol=1e-6)
    assert not torch.allclose(found[0, 4], found[0, 5]), "padding is encoded as well"
    assert frozen.encode([]).shape == (0, POSITIONS, WIDTH) and frozen.too_long([]) == []


def test_many_captions_are_encoded_as_one_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "TOGETHER", 2)
    frozen, captions = text.load(str(folder)), ["a red zero", "blue", "on grey", "seven", ""]
    one_by_one = torch.cat([frozen.encode([caption]) for caption in captions])
    torch.testing.assert_close(frozen.encode(captions), one_by_one, rtol=0, atol=1e-6)


def test_a_caption_that_is_too_long_is_cut_off_and_counted(folder: Path) -> None:
    frozen = text.load(str(folder))
    captions = ["a red seven on", "a red seven on grey", "a red seven on grey grey grey"]
    assert frozen.too_long(captions) == [1, 2], "the first and the last position are the marks of beginning and end"
    found = frozen.encode(captions)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)


def test_the_hash_is_of_weights_and_vocabulary(folder: Path, tmp_path: Path) -> None:
    frozen = text.load(str(folder))
    shutil.copytree(folder, tmp_path / "moved")
    assert text.load(str(tmp_path / "moved")).sha == frozen.sha
    assert text.load(str(text_encoder(tmp_path / "other", seed=1))).sha != frozen.sha
    words = ("[PAD]", "[BOS]", "[EOS]", "[UNK]", "a", "green", "blue", "seven", "zero", "café", "on", "grey")
    assert text.load(str(text_encoder(tmp_path / "words", words=words))).sha != frozen.sha


def test_a_damaged_encoder_of_the_demo_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSNR_CACHE", str(tmp_path))
    text.load("demo")
    (place,) = tmp_path.glob("demo-text-encoder-*")
    (place / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=f"^text encoder 'demo' cannot be loaded .delete {place}, and it is made anew.: "):
        text.load("demo")


def test_what_is_no_text_encoder_is_named(folder: Path, tmp_path: Path) -> None:
    def fails(match: str | None, name: Path) -> None:
        with pytest.raises(ValueError, match=match) as raised:
            text.load(str(name))
        assert "\n" not in str(raised.value) and f"text encoder '{name}' cannot be loaded" in str(raised.value)

    fails(None, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    fails(None, tmp_path / "empty")
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    fails("names bert, not one of clip_text_model, clip", tmp_path / "bert")
    (shutil.copytree(folder, tmp_path / "cut") / "model.safetensors").write_bytes(b"nonsense")
    fails(None, tmp_path / "cut")
    unpadded = transformers.AutoTokenizer.from_pretrained(folder)
    unpadded.pad_token = None
    shutil.copytree(folder, tmp_path / "unpadded")
    unpadded.save_pretrained(tmp_path / "unpadded")
    fails("its tokenizer has no token that pads", tmp_path / "unpadded")
    more = text_encoder(tmp_path / "more", words=(*WORDS, "green"))
    shutil.copy(more / "tokenizer.json", shutil.copytree(folder, tmp_path / "foreign"))
    with pytest.raises(ValueError, match=r"'a green' has token 12, its model knows 0 to 11"):
        text.load(str(tmp_path / "foreign")).encode(["red", "a green"])
