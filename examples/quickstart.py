"""RaDis from Python: one config, five stages.

    python examples/quickstart.py MODEL_FOLDER DATA_FOLDER OUTPUT_DIR

The data folder holds train.en-de.en and train.en-de.de (aligned lines) and test.en-de.json.
"""

import sys

import radistill


def main(model: str, data: str, output_dir: str) -> None:
    source = {"path": data, "pairs": ["en-de"]}
    config = radistill.config_from(
        {
            "name": "quickstart",
            "model": model,
            "output_dir": output_dir,
            "data": {"train": {**source, "limit": 32}, "test": {**source, "limit": 16}},
            "method": {"name": "radis", "rationale_weight": 1.0},
            "generate": {"sampling": {"max_new_tokens": 32}, "ledger": f"{output_dir}/ledger"},
            "train": {"bf16": False, "max_steps": 5},
        }
    )
    for outcome in radistill.run(config):
        print(f"{outcome.name}: {outcome.record.seconds:.1f} s")
    print(f"see {output_dir}/report.html")


if __name__ == "__main__":
    main(*sys.argv[1:4])
