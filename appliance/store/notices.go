package store

import (
	"fmt"
	"time"

	"github.com/postern-pki/postern/audit"
)

// EventValidator is the event of what a validator was told, OutTold its outcome where
// that succeeded.
const (
	EventValidator = "validator"
	OutTold        = "told"
)

// A Notice is a certificate of which a validator has to hear before it is delivered, and
// has not heard yet.
type Notice struct {
	Serial    string
	Validator string    // its name
	Since     time.Time // of the intent
}

type (
	// NoticeOwed comes with an [Intent]: the certificate is not to be delivered yet.
	NoticeOwed struct{ Notice Notice }
	// NoticeGiven ends what was owed, if it was.
	NoticeGiven struct{ Serial string }
)

func (NoticeOwed) change()  {}
func (NoticeGiven) change() {}

// TellObject adds to the object of an intent line that a validator has to hear of the
// certificate before it is delivered.
func TellObject(o audit.Object, validator string) { o["tell"] = validator }

// ToldObject is the object of the line that says that the validator has heard.
func ToldObject(serial, validator string) audit.Object {
	return audit.Object{"serial": serial, "validator": validator}
}

// owedOf returns what an intent line owes, nil for nothing.
func owedOf(l audit.Line, i Issuance) Change {
	if v := l.Record.Object.String("tell"); v != "" {
		return NoticeOwed{Notice{Serial: i.Serial, Validator: v, Since: unix(l.Record.Time.Unix())}}
	}
	return nil
}

func toldOf(o audit.Object) (Change, error) {
	if o.String("serial") == "" {
		return nil, fmt.Errorf("a notice that names no serial")
	}
	return NoticeGiven{o.String("serial")}, nil
}
