package operator

import (
	"testing"

	"github.com/postern-pki/postern/appliance/operator/acts"
)

// What the API can do has a row in the table, and the other way round: nothing is
// done that nobody's role is asked for.
func TestEveryHandlerHasARow(t *testing.T) {
	all := handlers()
	for _, a := range acts.Table() {
		if all[a.Name] == nil || len(a.Roles) == 0 || a.Method == "" {
			t.Errorf("%+v: nobody may do it, or nothing does it", a)
		}
		delete(all, a.Name)
	}
	for name := range all {
		t.Errorf("%s is done, and is in no row of the table", name)
	}
}
