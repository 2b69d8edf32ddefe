"""Prints template.yaml as AWS expands it, as JSON: expand.py TEMPLATE [PARAMETER=VALUE ...]

Runs in the environment of the SAM CLI, whose translator is the one that CloudFormation runs.
"""

import json
import sys

from samcli.lib.translate.sam_template_validator import SamTemplateValidator
from samcli.yamlhelper import yaml_parse

with open(sys.argv[1], encoding="utf-8") as file:
    template = yaml_parse(file.read())
parameters = dict(argument.split("=", 1) for argument in sys.argv[2:])
# No loader of managed policies: the template names none, and loading them would ask AWS.
validator = SamTemplateValidator(template, None, region="us-east-1", parameter_overrides=parameters)
print(json.dumps(yaml_parse(validator.get_translated_template_if_valid())))
