"""Students with the prior taken out: numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from rows import adjusted, runs

from ltkd.report import bias, claims, curves, tables
from ltkd.report.paper import Setting
from ltkd.study import FITTED


def two_classes() -> pd.DataFrame:
    """Curves of two taus: nine training images and one; LTKD's second seed a point higher."""
    levels = {("kd_ce1", 0.0): (80, 20), ("kd_ce1", 1.0): (60, 50),
              ("ltkd", 0.0): (70, 40), ("ltkd", 1.0): (50, 56)}  # fmt: skip
    return pd.DataFrame([
        {"method": method, "label": tables.LABELS[method], "seed": seed, "tau": tau,
         "as_trained": tau == 0, "class_id": c, "count": (9, 1)[c], "group": c,
         "accuracy": level[c] + seed * (method == "ltkd")}
        for (method, tau), level in levels.items() for seed in (0, 1) for c in (0, 1)
    ])  # fmt: skip


def test_each_test_set_has_a_share_of_its_own():
    # KD's accuracy at tau 0 and 1 is 74 and 59 where classes are as in training (weights 9 to 1),
    # 50 and 55 where they are alike, 35 and 52.5 at s = -0.5 (1 to 3); LTKD's 67 and 50.6, 55 and
    # 53, 47.5 and 54.5, and half a point more over both seeds.
    found = curves.deployment(two_classes()).set_index(["method", "s"])
    for s, kd, ltkd in ((1.0, (0, 0), (0, -6.5)), (0.0, (1, -5), (0, 0.5)),
                        (-0.5, (1, -17.5), (1, -4.5))):  # fmt: skip
        for method, (tau, trained) in (("kd_ce1", kd), ("ltkd", ltkd)):
            assert found.loc[(method, s), "tau"] == tau
            assert found.loc[(method, s), "trained"] == pytest.approx(trained)
        assert found.loc[("kd_ce1", s), "mean"] == pytest.approx(0)
    assert found.loc[("ltkd", -0.5), "mean"] == pytest.approx(2.5)
    assert found.loc[("ltkd", -0.5), "high"] == pytest.approx(2.5 + 12.7062 / 2, abs=1e-3)
    shown = curves.deployment_table(found.reset_index()).replace("\u00a0", " ", regex=True)
    assert shown.columns.tolist() == ["s = 1", "s = 0.5", "s = 0", "s = −0.5"]
    assert shown.loc["KD, weights 1 and 1 (ours)", "s = 0"] == "−5.0 → 0, τ 1"
    assert shown.loc["LTKD", "s = −0.5"] == "−4.5 → +2.5 [−3.9, 8.9], τ 1"
    assert curves.deployment(two_classes().query("method == 'ltkd'")).empty
    # A third class, of which there is no test image, changes nothing.
    unseen = two_classes().query("class_id == 1").assign(class_id=2, accuracy=np.nan)
    again = curves.deployment(pd.concat([two_classes(), unseen], ignore_index=True))
    pd.testing.assert_frame_equal(again, curves.deployment(two_classes()))


def test_the_best_share_is_one_a_method():
    found = curves.at_best_share(two_classes())
    assert found.groupby("label")["tau"].unique().map(list).to_dict() == {
        "KD, weights 1 and 1, τ = 1": [1.0], "LTKD, τ = 0": [0.0]}  # fmt: skip
    gains = bias.class_gains(found)
    assert gains["gain"].tolist() == [10, -10, 11, -9]  # 70 − 60 and 40 − 50, by seed


def test_methods_whose_networks_are_gone_are_named():
    frame = runs({"kd": [50.0], "catkd": [51.0]})
    frame["label"] = frame["method"].str.upper()
    assert curves.not_kept(frame, frame) == []
    (line,) = curves.not_kept(frame, frame[frame["method"] == "kd"])
    assert "not kept" in line.data
    assert line.data.endswith(": CATKD.*")


def test_the_prior_removed_is_a_method_of_its_own():
    rows = curves.prior_removed(adjusted())
    assert set(rows["method"]) == {"kd_removed"}
    assert rows["all"].tolist() == [54.0, 56.0]
    both = curves.joined(runs({"kd_ce1": [50.0, 52.0], "ltkd": [53.0, 53.0]}), adjusted().replace(
        {"method": {"kd": "kd_ce1"}}))  # fmt: skip
    row = claims.questions(both, claims.AFTER).loc[
        "KD, weights 1 and 1, prior removed (ours) − LTKD"
    ]
    assert row["tail"].startswith("+2.0 [")
    setting = Setting("digits", 1.0, "a", "b", 1)
    text = claims.headline(setting, both).data
    assert "**LTKD − (KD, weights 1 and 1, prior removed)** is −2.0 [" in text
    assert "paired over n = 2 seeds" in text
    one = claims.headline(setting, both[both["seed"] == 0]).data
    assert "One seed, for one split" in one
    assert "intervals, paired" not in one
    more = pd.concat([both, runs({"kd": [50.0]})])
    assert "paired over n = 1 to 2 seeds" in claims.headline(setting, more).data
    none = claims.headline(setting, both[both["method"] != "ltkd"]).data
    assert none.endswith("LTKD or its references are not among the runs.")


def test_what_stands_after_training():
    table = curves.after_training(adjusted())
    assert table.loc["KD", "all, as trained"].startswith("51.0 ± ")
    assert table.loc["KD", "tail"].startswith("55.0 ± ")
    assert table.loc["BS", "all, as trained"] == table.loc["BS", "all"]


def test_a_setting_is_chosen_as_trained_and_with_tau():
    # As trained T = 4 is better by 1; at tau = 0.5 T = 2 is, by 2; tau = 1 is too far for both.
    def at(temperature: int, tau: float, value: float) -> pd.DataFrame:
        name = f"KD, temperature {temperature}"
        where = {"variant": name, "tau": tau, "label": "KD"}
        one = runs({"kd": [value - 1, value + 1]}, **where)
        return one.assign(run=name + one["run"])

    trained = pd.concat([at(2, 0, 50), at(4, 0, 51)])
    course = pd.concat([trained, at(2, 0.5, 56), at(4, 0.5, 54), at(2, 1, 52), at(4, 1, 53)])
    table = curves.chosen(trained, course)
    assert table["setting"].to_dict() == {
        "KD": "temperature 4",
        "KD, τ chosen too": "temperature 2",
    }
    assert table["τ"].to_dict() == {"KD": "as trained", "KD, τ chosen too": 0.5}
    assert table["all"].tolist() == ["51.0", "56.0"]
    assert table["all, over the settings (n)"].tolist() == ["50.0 to 51.0 (2)", "54.0 to 56.0 (2)"]
    one = curves.chosen(trained, course[course["variant"] == "KD, temperature 4"])
    assert one["all, over the settings (n)"].tolist() == ["50.0 to 51.0 (2)", "54.0 to 54.0 (1)"]
    assert list(curves.chosen(trained, course[:0]).index) == ["KD"]


def test_curves_are_compared_at_one_height():
    # Head falls 10 a unit of tau in all; KD (1, 1) reaches 60 at tau = 1, where its tail is 30;
    # LTKD, 5 lower on the head, is there at tau = 0.5 with 25 + 4; DKD never comes so low.
    rows = []
    for method, head, tail, slope in (
        ("kd_ce1", 70, 20, 10),
        ("ltkd", 65, 25, 8),
        ("dkd", 90, 0, 0),
    ):
        for tau in (0.0, 1.0, 2.0):
            values = {
                "head": head - 10 * tau,
                "tail": tail + slope * tau,
                "medium": 40.0,
                "all": 0.0,
            }
            rows += [{"run": f"{method}{seed}", "method": method, "ours": False, "seed": seed,
                      "tau": tau, **values} for seed in (0, 1)]  # fmt: skip
    gaps = curves.at_equal_head(pd.DataFrame(rows))
    assert set(gaps["method"]) == {"ltkd"}
    found = gaps.set_index("metric")["mean"]
    assert found.to_dict() == pytest.approx({"all": 0, "medium": 0, "tail": -1})
    assert set(gaps["n"]) == {2}
    assert curves.at_equal_head(pd.DataFrame(rows), "kd").empty
    (line,) = curves.not_reached(pd.DataFrame(rows))  # told apart from what did not run
    assert line.data.endswith("that head accuracy: DKD (seed 0, 1).*")
    assert curves.not_reached(pd.DataFrame(rows[:-6])) == []


def test_values_of_tau_with_the_same_head_are_one_point():
    # LTKD's head is 60 at tau = 0.5, 1 and 1.5, where its tail is 20, 24 and 40: 28 in the mean.
    rows = []
    for method, course in (
        ("kd_ce1", [(70, 10), (65, 15), (60, 20), (50, 30), (40, 40)]),
        ("ltkd", [(70, 10), (60, 20), (60, 24), (60, 40), (50, 50)]),
    ):
        rows += [{"run": method, "method": method, "ours": False, "seed": 0, "tau": k / 2,
                  "head": head, "tail": tail, "medium": 0.0, "all": 0.0}
                 for k, (head, tail) in enumerate(course)]  # fmt: skip
    for order in (rows, rows[::-1]):
        gaps = curves.at_equal_head(pd.DataFrame(order)).set_index("metric")["mean"]
        assert gaps["tail"] == pytest.approx(28 - 20)


def test_the_share_fitted_without_labels_beside_the_others():
    fitted = runs({"kd": [55.0, 58.0], "balanced_softmax": [54.0, 55.0]}).assign(
        label=["KD", "KD", "BS", "BS"], tau=[1.2, 1.4, 0.9, 0.9]
    )
    assert curves.fitted_shares(pd.DataFrame(columns=FITTED), adjusted()).empty
    found = curves.fitted_shares(fitted, adjusted())
    assert list(found.index) == ["KD", "BS"]
    # As trained it stands at tau = 1.
    balanced = found.loc["BS", ["minus as trained", "minus τ = 1"]].tolist()
    assert balanced == ["−0.5 [−6.9, 5.9]"] * 2
    row = found.loc["KD"]
    assert row["τ"] == "1.30"
    # 55 − 50, 58 − 52; t(0.975, 1) = 12.7062 on half a point of standard error.
    assert row["minus as trained"] == "+5.5 [−0.9, 11.9]"
    # 55 − 54, 58 − 56: at tau = 1, where its curve is highest, too.
    assert row["minus τ = 1"] == "+1.5 [−4.9, 7.9]"
    assert row["minus best τ"] == "+1.5 [−4.9, 7.9], τ 1"
    assert row["all"] == "56.5 ± 19.1 (2)"


def test_a_row_states_where_new_seeds_fall_as_trained_and_with_the_prior_removed():
    # As 1, 2, 3 in test_intervals: half-width 4.30265 sqrt(2 / 3).
    both = runs({"kd": [1.0, 2.0, 3.0], "ltkd": [1.0, 2.0, 3.0]})
    after = both.assign(tau=1.0, as_trained=False, tail=both["tail"] + 4, label="")
    stated = curves.to_reproduce(both, after[after["run"] != both["run"].iloc[-1]])
    assert stated.loc["kd", "tail"] == "−1.5 to 5.5"
    assert stated.loc["kd", "tail, prior removed"] == "2.5 to 9.5"
    assert stated.loc["ltkd", "tail, prior removed"] == "—"  # of one seed it is not known
    same = runs({"kd": [2.0, 2.0, 2.0]})
    assert "no interval" in curves.to_reproduce(same, after[:0]).loc["kd", "tail"]
