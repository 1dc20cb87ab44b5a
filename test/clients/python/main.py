"""A client of mecha-keys made by openapi-python-client: issues, verifies, changes with null, and revokes without a body."""

import json
import os

from mecha_keys_api import AuthenticatedClient
from mecha_keys_api.api.control import issue_key, revoke_key, update_key
from mecha_keys_api.api.runtime import verify_key
from mecha_keys_api.models import IssueBody, UpdateBody, VerifyBody

operator = AuthenticatedClient(base_url=os.environ["MECHA_KEYS_URL"], token=os.environ["OPERATOR_TOKEN"])
gateway = AuthenticatedClient(base_url=os.environ["MECHA_KEYS_URL"], token=os.environ["GATEWAY_CREDENTIAL"])

issued = issue_key.sync(client=operator, body=IssueBody(mecha="sales^acmecorp", name="python"))
good = verify_key.sync(client=gateway, body=VerifyBody(key=issued.plaintext_key))
changed = update_key.sync(issued.key.id, client=operator, body=UpdateBody(name=None, expires_at=None))
revoked = revoke_key.sync(issued.key.id, client=operator)
bad = verify_key.sync(client=gateway, body=VerifyBody(key=issued.plaintext_key))
refused = update_key.sync("nothing", client=operator, body=UpdateBody())

print(json.dumps({
    "id": issued.key.id,
    "handle": good.mecha.handle,
    "name_is_null": changed.name is None,
    "status": revoked.status.value,
    "complete": revoked.propagation.complete,
    "refused_for": bad.code.value,
    "errors": len(refused.errors),
}))
