"""The ladder plan: each rung needs, and is compared with, the rung before."""

from sketchlib.workbook import plan


def test_a_rung_needs_and_is_compared_with_the_one_before():
    chosen = plan.read_plan(plan.find_plan("ladder"), (), "")
    steps = {step.name: step for step in chosen.steps}
    rungs = [steps[f"rung{number}"] for number in (1, 2, 3)]
    for below, above in zip(rungs, rungs[1:], strict=False):
        assert below.name in above.needs
        assert above.job.values["baseline"] == below.name
        assert above.job.values["target_accuracy"] > 0
    first = rungs[0].job.values
    assert first["frozen"]
    assert first["bank_views"] > 0
