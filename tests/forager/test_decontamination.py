"""Which repositories and texts training data stay away from."""

import pytest

from cwm_jax.forager.decontamination import SWE_BENCH, Exclusions, KnownTexts, bare_name

TEXT = "the function returns the wrong value when its argument is negative and even " * 3
OTHER = "a window of keys is counted with the query's own position by every kernel here " * 3


@pytest.mark.parametrize(
    "source",
    [
        "django/django",
        "someone/Django",
        "https://example.org/someone/django.git",
        "git@example.org:someone/django.git",
        "/srv/checkouts/django/",
        "Django==4.2",
        "django-4.2.tar.gz",
        "django__django-12345",
    ],
)
def test_a_repository_is_excluded_in_all_its_spellings(source):
    assert Exclusions().find(source) == "django/django"


@pytest.mark.parametrize("source", ["django-filter", "me/djangoish", "requests-oauthlib==1.3"])
def test_a_repository_of_a_longer_name_is_another(source):
    assert Exclusions().find(source) is None


def test_separators_do_not_matter_and_the_list_is_the_users():
    assert bare_name("x/Scikit_Learn") == "scikit-learn"
    assert Exclusions().find("scikit_learn-1.5.0.tar.gz") == "scikit-learn/scikit-learn"
    assert Exclusions(("me/mine",)).find("you/mine") == "me/mine"
    assert Exclusions(("me/mine",)).find(SWE_BENCH[0]) is None


def test_a_near_text_is_found_and_another_is_not():
    known = KnownTexts({"a": TEXT, "b": OTHER})
    near = known.find(TEXT + "today")
    assert near is not None and near.name == "a" and near.jaccard >= 0.8
    assert known.find("nothing of this stands there, in none of these words at all " * 3) is None


def test_short_texts_are_no_evidence():
    known = KnownTexts({"short": "three words only"})
    assert not len(known) and known.find("three words only") is None


def test_a_similarity_out_of_range_is_refused():
    with pytest.raises(ValueError, match="at most 1"):
        KnownTexts({}, jaccard=1.5)
