// A client of mecha-keys made by oapi-codegen: issues, verifies, changes with null, and revokes without a body.
package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"time"

	"github.com/oapi-codegen/nullable"

	"mecha-keys-client/api"
)

func main() {
	operator := client(os.Getenv("OPERATOR_TOKEN"))
	gateway := client(os.Getenv("GATEWAY_CREDENTIAL"))
	ctx := context.Background()
	name := "go"

	issued, err := operator.IssueKeyWithResponse(ctx, nil, api.IssueBody{Mecha: "sales^acmecorp", Name: &name})
	check(err)
	id, plaintext := issued.JSON201.Key.Id, issued.JSON201.PlaintextKey

	good := verify(ctx, gateway, plaintext)
	changed, err := operator.UpdateKeyWithResponse(ctx, id, nil, api.UpdateBody{Name: nullable.NewNullNullable[string](), ExpiresAt: nullable.NewNullNullable[time.Time]()})
	check(err)

	// Nothing but the type of a body that is left out.
	revoked, err := operator.RevokeKeyWithBodyWithResponse(ctx, id, nil, "application/json", nil)
	check(err)
	propagation, err := revoked.JSON200.Propagation.Get()
	check(err)
	bad := verify(ctx, gateway, plaintext)
	refused, err := operator.UpdateKeyWithResponse(ctx, "nothing", nil, api.UpdateBody{})
	check(err)

	valid, err := good.AsValid()
	check(err)
	refusal, err := bad.AsRefused()
	check(err)
	check(json.NewEncoder(os.Stdout).Encode(map[string]any{
		"id": id, "handle": valid.Mecha.Handle, "name_is_null": changed.JSON200.Name.IsNull(), "status": revoked.JSON200.Status,
		"complete": propagation.Complete, "refused_for": refusal.Code, "errors": len(*refused.ApplicationproblemJSON400.Errors),
	}))
}

func verify(ctx context.Context, gateway *api.ClientWithResponses, key string) *api.VerifyAnswer {
	answer, err := gateway.VerifyKeyWithResponse(ctx, api.VerifyBody{Key: key})
	check(err)
	return answer.JSON200
}

func client(token string) *api.ClientWithResponses {
	made, err := api.NewClientWithResponses(os.Getenv("MECHA_KEYS_URL"), api.WithRequestEditorFn(func(_ context.Context, request *http.Request) error {
		request.Header.Set("Authorization", "Bearer "+token)
		return nil
	}))
	check(err)
	return made
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
