package intune

import (
	"context"
	"fmt"
)

// MaxRevocations is how many revocations one download gives at most.
const MaxRevocations = 500

// A Revocation is what Intune wants revoked.
type Revocation struct {
	Context string `json:"requestContext"` // Intune's own name for it
	Serial  string `json:"serialNumber"`   // hex
	Issuer  string `json:"issuerName"`
	Config  string `json:"caConfiguration"`
}

// A Result is what became of a revocation. Code is one of Intune's names for an error,
// "None" where it succeeded.
type Result struct {
	Context   string `json:"requestContext"`
	Succeeded bool   `json:"succeeded"`
	Code      string `json:"errorCode"`
	Message   string `json:"errorMessage"`
}

// Revocations returns what Intune wants revoked, most of it at most, of one issuer or,
// with "", of all.
func (c *Client) Revocations(ctx context.Context, most int, issuer string) ([]Revocation, error) {
	if most < 1 || most > MaxRevocations {
		return nil, fmt.Errorf("%w: 1 to %d revocations at once", ErrOptions, MaxRevocations)
	}
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	var name any
	if issuer != "" {
		name = issuer
	}
	var reply struct{ Value []Revocation }
	err := c.post(ctx, connector, "CertificateAuthorityRequests/downloadRevocationRequests", connectorVersion,
		map[string]any{"downloadParameters": map[string]any{"maxRequests": most, "issuerName": name}}, &reply)
	if err == nil && len(reply.Value) > most {
		err = fmt.Errorf("%w: more revocations than were asked for", ErrAnswer)
	}
	if err != nil {
		return nil, err
	}
	return reply.Value, nil
}

// Revoked tells Intune what became of revocations.
func (c *Client) Revoked(ctx context.Context, results []Result) error {
	if len(results) == 0 || len(results) > MaxRevocations {
		return fmt.Errorf("%w: 1 to %d results at once", ErrOptions, MaxRevocations)
	}
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	var reply struct{ Value bool }
	err := c.post(ctx, connector, "CertificateAuthorityRequests/uploadRevocationResults", connectorVersion, map[string]any{"results": results}, &reply)
	if err == nil && !reply.Value {
		err = fmt.Errorf("%w: the results were not taken", ErrAnswer)
	}
	return err
}
