"""Sources to images: what works is kept, what does not is a row, and no row is made twice."""

import json
from pathlib import Path

import pytest

import cwm_jax.forager.images.making as making
from cwm_jax.forager.images.index_access import Index
from cwm_jax.forager.images.making import ImageSettings, make_images
from cwm_jax.forager.images.recipe import Recipe
from cwm_jax.forager.images.store import Store, check_image
from cwm_jax.storage import StorageError
from cwm_jax.trace.corpus.engines import LocalEngine
from tests.forager.images_made import LIMITS, RECIPE, git, repository
from tests.forager.packages_made import COMMAND, FILES, PASSED

NO_INDEX = Index(
    hosts=(),
    options={"index-url": "https://index.test/simple", "retries": "0", "timeout": "2"},
    readable=(),
)
BROKEN = {**FILES, "shapes/area.py": FILES["shapes/area.py"].replace("return height", "pass")}


class Here:
    """An engine of this process alone, which a test's own recipes reach."""

    def map_chunks(self, function, chunks, died):
        yield from map(function, chunks)


def made(store, *specs, engine=None, **settings):
    settings = ImageSettings(limits=LIMITS, **settings)
    specs = [*map(str, specs)]
    return make_images(specs, store, settings, index=NO_INDEX, engine=engine or Here())


@pytest.fixture
def given(monkeypatch):
    """The recipes that are found, instead of those that a project's files declare."""
    found = [RECIPE]
    monkeypatch.setattr(making, "recipes", lambda files: list(found) if files else [])
    return found


def test_a_project_without_a_network_is_tested_by_unittest(tmp_path):
    checkout = repository(tmp_path / "shapes", ("All", FILES))
    (row,) = made(tmp_path / "store", checkout, engine=LocalEngine(1))
    assert (row.failure, row.passed, row.failed) == ("", len(PASSED), 0), row
    (image,) = Store(tmp_path / "store").images()
    assert image.name == row.image and image.manifest.name == "shapes"
    assert {*image.manifest.tests} == {*PASSED} and "unittest" in image.manifest.recipe.command
    assert image.manifest.commit == git(checkout, "rev-parse", "HEAD").strip()
    check_image(image)


def test_what_fails_is_a_row_of_its_class(tmp_path, given):
    checkout = repository(tmp_path / "broken", ("All", BROKEN))
    (tmp_path / "empty").mkdir()
    specs = [checkout, tmp_path / "empty", "django==5.0", tmp_path / "none.tar.gz", "nonesuch"]
    rows = made(tmp_path / "store", *specs)
    assert [row.failure for row in rows] == ["tests-fail", "source", "excluded", "source", "source"]
    assert rows[0].failed == 1 and rows[0].recipe == "given"
    assert "django/django" in rows[2].detail
    (again,) = made(tmp_path / "store", checkout)
    assert again == rows[0]
    given[:] = [with_install("mended", "sed -i 's/pass$/return height/' shapes/area.py")]
    (again,) = made(tmp_path / "store", checkout, retry=True)
    assert again.failure == "tests-fail" and again.recipe == "mended"
    given.clear()
    (row,) = made(tmp_path / "other", checkout)
    assert row.failure == "no-recipe"
    assert not Store(tmp_path / "store").images()


def test_recipes_are_tried_in_turn_and_the_furthest_failure_is_told(tmp_path, given):
    checkout = repository(tmp_path / "shapes", ("All", FILES))
    given[:] = [with_install("first", "false"), with_install("second", "true")]
    (row,) = made(tmp_path / "store", checkout)
    assert row.recipe == "second" and row.image
    given[:] = [with_install("first", "false"), with_install("second", "true", "python -m none")]
    given.append(with_install("third", "false"))
    (row,) = made(tmp_path / "other", checkout)
    assert (row.failure, row.recipe) == ("no-tests", "second")


def with_install(name: str, install: str, command: str = COMMAND) -> Recipe:
    return Recipe(name=name, install=(install,), command=command, format="unittest", canary="tests")


def test_earlier_commits_are_tried_where_the_last_is_broken(tmp_path, given):
    checkout = repository(tmp_path / "shapes", ("Good", FILES), ("Bad", BROKEN))
    (row,) = made(tmp_path / "store", checkout)
    assert row.failure == "tests-fail"
    (row,) = made(tmp_path / "other", checkout, earlier=1)
    assert row.commit == git(checkout, "rev-parse", "HEAD~1").strip()
    assert row.image.startswith(f"shapes-{row.commit[:12]}-")


def test_a_source_is_made_once_whoever_works(tmp_path, given, monkeypatch):
    folder, specs = tmp_path / "store", []
    for name in ("one", "two", "three"):
        specs.append(repository(tmp_path / name, ("All", {**FILES, "NAME": name})))
    made(folder, specs[0])
    path = folder / "builds.jsonl"
    path.write_bytes(path.read_bytes() + b'{"source": "to')  # torn by a kill
    rows = made(folder, *specs)
    assert [json.loads(line)["source"] for line in path.read_text().splitlines()] == [
        *map(str, specs)
    ]
    assert [row.image for row in rows] == [image.name for image in in_order(folder, rows)]
    monkeypatch.setattr(making, "make_image", None)  # nothing is made
    assert made(folder, specs[2], specs[0]) == [rows[2], rows[0]]
    path.write_text('{"source": "x"}\n')
    with pytest.raises(StorageError, match=r"builds.jsonl: a build is"):
        made(folder, specs[0])


def in_order(folder: Path, rows):
    images = {image.name: image for image in Store(folder).images()}
    return [images[row.image] for row in rows]


def test_the_same_source_gives_the_same_image(tmp_path, given, monkeypatch):
    checkout = repository(tmp_path / "shapes", ("All", FILES))
    monkeypatch.chdir(tmp_path)
    (one,), (two,) = made(tmp_path / "one", checkout), made(Path("two"), checkout)
    assert Store(Path("two")).find(two.image).path == tmp_path / "two/images" / two.image
    assert one.image == two.image
