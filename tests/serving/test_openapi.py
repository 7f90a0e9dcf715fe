"""The service does what its OpenAPI description says, for valid and invalid requests that are made from it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from imagelm.inference.arguments import AnswerArguments
from imagelm.inference.generation_arguments import ClassArguments, GenerationArguments
from imagelm.utils.command_line import options_of

# 422: what the description can't say, such as which tokens make a row, and which bytes an image.
CONFIG = {
    "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "422"]}},
    "generation": {"deterministic": True, "database": "none"},
}
NUM_EXAMPLES = 300  # of each endpoint, valid ones and as many invalid ones


def test_the_description_names_every_option_with_its_meaning_and_default(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name, groups in {"Classify": [AnswerArguments], "Generate": [ClassArguments, GenerationArguments]}.items():
        properties = schemas[name]["properties"]
        for entry in options_of(*groups):
            flag = entry.flag.removeprefix("--")
            if entry.name not in ("num_return_sequences", "keep_percent"):
                assert properties[flag]["description"], flag
                assert flag == "seed" or properties[flag]["default"] == entry.default, flag
        assert schemas[name]["additionalProperties"] is False
    assert schemas["Generate"]["properties"]["condition"]["enum"] == ["rejection", "likelihood"]


@pytest.mark.slow
def test_schemathesis_finds_nothing(service):
    import schemathesis  # takes seconds
    from schemathesis import GenerationMode
    from schemathesis.checks import CHECKS, load_all_checks
    from schemathesis.config import SchemathesisConfig

    app = service(max_rows=4)
    load_all_checks()
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=SchemathesisConfig.from_dict(CONFIG))
    checked = []

    def check(case) -> None:
        form = case.body if case.media_type == "multipart/form-data" and isinstance(case.body, dict) else {}
        if [] in form.values():
            return  # a form sends an empty list as no field at all, which is valid
        checked.append(case.call_and_validate(checks=CHECKS.get_all()).status_code)

    for operation in (result.ok() for result in schema.get_all_operations()):
        # Nothing can be wrong about a GET.
        modes = GenerationMode if operation.method == "post" else [GenerationMode.POSITIVE]
        for mode in modes:
            strategy = operation.as_strategy(generation_mode=mode)
            quiet = settings(
                max_examples=NUM_EXAMPLES,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            quiet(given(strategy)(check))()
    assert 500 not in checked and len(checked) >= 4 * NUM_EXAMPLES
