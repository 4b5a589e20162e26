"""The planner's method on MaxText's published run of Llama 3.1 70B (see learn/calibration.py), which holds what this prints.

    python tests/bench/calibration.py        needs the extra [tpu], no TPU
"""

from swerl_jax.learn import calibration, plan, plan_table
from swerl_jax.policy.chips import parse_topology


def main() -> None:
    topology = parse_topology(calibration.TOPOLOGY)
    found = plan.make(calibration.parts(plan.devices(topology)), topology, print)
    print(plan_table.table(found))
    for kind in ("compiler_s", "roofline_s"):
        seconds = found.seconds("learn", kind)
        print(f"{kind:12}{seconds:8.3f} s{calibration.mfu(seconds):8.2%} MFU as published ones are counted")


if __name__ == "__main__":
    main()
