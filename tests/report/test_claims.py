"""The claims: what confirms, contradicts or leaves them open."""

import numpy as np
import pandas as pd
import pytest
from rows import runs

from ltkd.report import claims
from ltkd.report.paper import Setting


def test_numbers_of_groups_that_did_not_run_are_no_confirmation():
    data = type("D", (), {"counts": np.ones(100)})()
    study = type("S", (), {"data": lambda self, gamma: data})()
    frame = pd.concat([runs({"ltkd": [50.0, 51.0]}).assign(n_groups=n) for n in (3, 10, 100)])
    found = claims.group_tests(study, Setting("cifar100", 100.0, "vgg13", "vgg8", 30), frame)
    assert [(test.text, test.gap.n) for test in found] == [
        ("n = 10 − n = 3, all", 2), ("n = 4, 5, 20, 25 − n = 3, all", 0)]  # fmt: skip


def test_the_margin_is_the_papers_largest_change():
    assert claims.group_margin() == pytest.approx(1.30)  # WRN-40-2-ShuffleNetV1, 48.60 to 49.90


def test_a_study_without_students_has_no_tests():
    study = type("S", (), {"results": lambda self, part: pd.DataFrame()})()
    columns = ["setting", "claim", "comparison", "verdict", "points", "n"]
    tests = claims.claims(study)
    assert (list(tests.columns), len(tests)) == (columns, 0)


def test_a_claim_needs_all_of_its_tests():
    def judge(*found: str) -> str:
        rows = [{"setting": "s", "claim": 6, "verdict": v} for v in found]
        return claims.verdicts(pd.DataFrame(rows))["verdict"].iloc[0]

    assert judge("confirmed", "confirmed") == "confirmed"
    assert judge("confirmed", "not tested here") == "confirmed where tested"
    assert judge("confirmed", "not resolved") == "not resolved"
    assert judge("confirmed", "contradicted", "not resolved") == "contradicted"
    assert judge("not tested here") == "not tested here"


def test_every_claim_of_a_study_whose_answers_are_known():
    common = {"dataset": "cifar100", "gamma": 100.0, "student": "vgg8", "epochs": 9}
    pair = ("vgg13", "vgg8")
    seeds = np.array([0.0, 0.1, 0.2])

    def cells(by: str, means: dict) -> pd.DataFrame:
        values = {key: list(m + seeds * (1 + k / 10)) for k, (key, m) in enumerate(means.items())}
        parts = [runs({"ltkd": series}).assign(**{by: key}) for key, series in values.items()]
        return pd.concat(parts).assign(teacher="vgg13", **common)

    parts = {
        "distillation": cells("method", {"kd": 50, "ltkd": 55, "dkd": 56}),
        "ablations": cells("variant", {"cross_biased": 50, "cross_rebalanced": 52,
                                       "within_only": 51, "cross_and_within": 55}),
        "group_count": cells("n_groups", {3: 55, 4: 55.5, 5: 40}),
        "teachers": runs({"teacher": [60.0]}).assign(**common | {"student": "vgg13"}, teacher=""),
    }  # fmt: skip
    labels = np.arange(40) % 20
    data = type("D", (), {
        "gamma": 100.0, "counts": np.arange(20, 0, -1),
        "groups": lambda self, n: np.repeat([0, 1, 2], [7, 6, 7]),
    })()  # fmt: skip
    study = type("S", (), {
        "parameters": type("P", (), {"gammas": [100.0]}), "schedule": "steps",
        "pairs": [pair], "temperature": 1.0, "batch": 64, "results": lambda self, part: parts[part],
        "data": lambda self, gamma=0: data,
        # Twice the logit in the head, a little more of it from image to image.
        "teacher_logits": lambda self, pair, part: (
            np.linspace(1, 1.1, 40)[:, None] * np.repeat([2, 1, 1], [7, 6, 7]), labels),
    })()  # fmt: skip
    tests = claims.claims(study)
    yes, no = "confirmed", "contradicted"
    assert claims.verdicts(tests)["verdict"].tolist() == [yes, yes, no, yes, no, no]
    assert tests.query("claim == 5")["verdict"].tolist() == [yes, no]
    expected = [no] * 2 + ["not tested here"] * 6
    assert tests.query("claim == 6")["verdict"].tolist() == expected
    assert tests.query("claim == 3")["points"].item().startswith("−4.9")
    data.gamma = 10.0  # the study's first factor is another one than these runs have
    first = claims.claims(study).query("claim == 1")
    assert first["verdict"].tolist() == ["not tested here"]


def test_the_headline_says_which_number_is_the_tail_s():
    both = runs({"kd": [50.0, 52.0], "ltkd": [53.0, 56.0]})
    both.loc[both["method"] == "ltkd", "tail"] += 10
    text = claims.headline(Setting("digits", 1.0, "a", "b", 1), both).data
    assert "**LTKD − KD** is +13.5 [" in text
    assert "points on the tail (" in text.split("; ")[0]
    assert " and +3.5 [" in text.split(" on the tail (")[1]


def test_the_paper_s_pattern_is_tested_in_our_cells():
    cells = {"baseline": [50.0, 50.5], "cross_biased": [48.0, 49.5], "cross_rebalanced": [51.0, 52],
             "within_only": [53.0, 53.5], "cross_and_within": [58.0, 58.7]}  # fmt: skip
    own = runs(cells)
    table = claims.ablation_pattern(own.assign(variant=own["method"], method="ltkd"))
    # Together 8 and 8.2, apart 1 + 3 and 1.5 + 3: 4 and 3.7 more.
    assert [text.split(" [")[0] for text in table["points"]] == ["+1.5", "−1.2", "+3.9", "+3.9"]
    assert table["verdict"].tolist()[2:] == ["confirmed"] * 2
    some = own[own["method"] != "baseline"]
    assert claims.ablation_pattern(some.assign(variant=some["method"])).empty


def test_questions_name_what_did_not_run():
    table = claims.questions(runs({"kd": [50.0, 51.0], "kd_ce1": [52.0, 53.01]}))
    assert table.index[0] == "KD, weights 1 and 1 (ours) − KD"
    assert table["question"].str.len().max() <= 50  # longer cells would be cut off on the page
    assert table.iloc[0][["tail", "on the tail"]].tolist() == ["+2.0 [1.9, 2.1]", "higher"]
    assert set(table["on the tail"].iloc[1:]) == {"not tested here"}
    ran, line = claims.asked_here(table)
    assert list(ran.index) == list(table.index[:1])
    assert "here: LTKD − KD, weights 1 and 1; " in line.data
    assert [type(one) for one in claims.asked_here(ran)] == [pd.DataFrame]
    (line,) = claims.asked_here(table.iloc[1:])
    assert line.data.startswith("*Not tested here: ")
