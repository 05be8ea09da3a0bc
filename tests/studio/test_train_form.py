"""The form of the Train tab: what cannot be used is named, and what it starts is what the command line would train."""

from __future__ import annotations

import math

import pytest

from atonce.core.errors import InputError
from atonce.data.sources import open_data
from atonce.planning.candidates import settings_of
from atonce.studio.train_form import MODEST, OWN, Form, arguments, check_name, form_of, recipe_of, words
from atonce.studio.train_sources import source_of, sources
from atonce.training.presets import PRESETS
from atonce.training.start import resolve
from atonce.training.words import recipe_from_words


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "", "no name"),
        ("name", "../up", "'../up'"),
        ("name", "a/b", "'a/b'"),
        ("name", ".hidden", "first a letter or digit"),
        ("name", "x" * 65, "1 to 64"),
        ("name", "a b", "'a b'"),
        ("preset", "magic", "'magic'"),
        ("images", -5, "images is -5"),
        ("images", 0, "images is 0"),
        ("images", 1.5, "images is 1.5"),
        ("images", 1e300, "images is"),
        ("images", float("nan"), "images is nan"),
        ("batch", 0, "batch is 0"),
        ("batch", 10**9, "batch is 1000000000"),
        ("batch", "many", "batch is 'many'"),
        ("lr", -0.1, "learning rate is -0.1"),
        ("lr", 100, "learning rate is 100"),
        ("lr", math.inf, "learning rate is inf"),
        ("network", "huge", "'huge'"),
        ("size", 2, "size is 2"),
        ("size", 10_000, "size is 10000"),
        ("seed", -1, "seed is -1"),
    ],
)
def test_wrong_fields_are_named_with_value_and_limit(field: str, value: object, said: str):
    with pytest.raises(InputError) as refused:
        form_of({"name": "run", "data": "digits", field: value})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_empty_fields_are_left_to_the_preset():
    form = form_of({"name": " run ", "images": None, "batch": "", "lr": 0, "size": 0, "seed": None})
    assert form == Form("run")
    assert arguments(form) == {"seed": 0}
    assert arguments(Form("run", "ict")) == {"seed": 0, **MODEST}
    assert recipe_of(form, 8) == PRESETS["digits"]()


def test_distillation_asks_for_a_teacher():
    with pytest.raises(InputError, match="cd distils a diffusion model and none is chosen"):
        form_of({"name": "run", "preset": "cd"})
    form = form_of({"name": "run", "preset": "cd", "start": "digits"})
    assert form.distils
    assert arguments(form)["teacher"] == "digits"
    assert arguments(form_of({"name": "run", "preset": "ect", "start": "digits"}))["init"] == "digits"


@pytest.mark.parametrize("preset", ["digits", "ict", "ct", "ect", "diffusion"])
@pytest.mark.parametrize("small", [True, False])
def test_the_command_trains_the_recipe_that_is_shown(preset: str, small: bool):
    form = Form("run", preset, images=6400, batch=32, lr=1e-3, network="tiny", conditional=True, seed=7, small=small)
    line = words(form, 8, "digits", "runs/run")
    assert line[:6] == ["train", preset, "--data", "digits", "--out", "runs/run"]
    options = {line[i][2:]: line[i + 1] for i in range(2, len(line) - 1, 1) if line[i].startswith("--") and line[i] != "--set"}
    given = {"images": int(options["images"]), "batch": int(options["batch"]), "seed": 7, "network": "tiny"}
    typed = recipe_from_words(preset, given, line[line.index("--set") + 1 :])
    data = open_data("digits")
    assert resolve(typed, data) == resolve(recipe_of(form, 8), data)
    assert typed.lr == 1e-3
    assert typed.conditional


def test_small_runs_have_the_settings_of_our_table_and_published_ones_the_preset():
    small, published = recipe_of(Form("a", "ict", small=True), 8), recipe_of(Form("a", "ict", small=False), 8)
    assert {name: getattr(small, name) for name in settings_of("ict", 8, True)} == settings_of("ict", 8, True)
    assert published.lr == PRESETS["ict"]().lr == 1e-4
    assert small.lr == 2e-3


def test_the_default_network_is_the_presets():
    assert Form("a").network == OWN
    assert recipe_of(Form("a"), 8).network == "tiny"
    assert recipe_of(Form("a", network="small"), 8).network == "small"


def test_sources_are_known_data_own_packs_and_for_owners_the_disk(tmp_path):
    (tmp_path / "packs" / "mine").mkdir(parents=True)
    (tmp_path / "packs" / "two.zip").write_bytes(b"")
    (tmp_path / "packs" / ".part").mkdir()
    (tmp_path / "packs" / "link").symlink_to("/")
    keys = [source.key for source in sources(tmp_path, disk=False)]
    assert keys[0] == "digits"
    assert [key for key in keys if key.startswith("pack:")] == ["pack:mine", "pack:two.zip"]
    assert "disk" not in keys
    assert sources(tmp_path, disk=True)[-1].key == "disk"
    pack = source_of("pack:mine", tmp_path, False)
    assert pack.private
    assert pack.place == str((tmp_path / "packs" / "mine").resolve())


@pytest.mark.parametrize("key", ["pack:../../etc", "pack:link", "pack:", "disk", "nothing", "", None])
def test_other_places_are_refused(tmp_path, key: str | None):
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "link").symlink_to("/")
    with pytest.raises(InputError):
        source_of(key, tmp_path, disk=False)


def test_a_place_on_the_disk_must_exist(tmp_path):
    with pytest.raises(InputError, match="no place is given"):
        source_of("disk", tmp_path, True, "  ")
    with pytest.raises(InputError, match="does not exist"):
        source_of("disk", tmp_path, True, str(tmp_path / "nowhere"))
    assert source_of("disk", tmp_path, True, str(tmp_path)).place == str(tmp_path.resolve())


def test_names_keep_what_folders_may_have():
    assert check_name("run-1.a_B") == "run-1.a_B"
    with pytest.raises(InputError):
        check_name("run.")
