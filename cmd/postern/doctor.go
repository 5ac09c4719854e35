package main

import (
	"encoding/json"
	"errors"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/doctor"
)

func (a *app) doctorCmd() *cobra.Command {
	parent := &cobra.Command{Use: "doctor", Short: "Examine what an appliance depends on"}
	var o doctor.Options
	var pinFile string
	pinFD := -1
	c := &cobra.Command{
		Use: "hsm --module M", Short: "Examine a PKCS#11 module and a token for what Postern needs of them", Args: cobra.NoArgs,
		Long: `Examine a PKCS#11 module and a token: mechanisms, attributes, how it decrypts,
speed, limits and quirks. Nothing is left on the token. Without a PIN there is no
login, and with one a single attempt, none if the token counts failed ones. Beside a
running service it needs sessions and time of the token that the service lacks.
The output has no secrets: send it with a question.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.Module == "":
				return misused("--module /usr/lib/softhsm/libsofthsm2.so, say", "no module is named")
			case pinFile != "" && pinFD >= 0:
				return misused("one of --pin-file and --pin-fd", "two sources of a PIN are named")
			case pinFile != "":
				o.PIN = hsm.PINFromFile(pinFile)
			case pinFD >= 0:
				o.PIN = hsm.PINFromFD(pinFD)
			}
			r, err := doctor.Run(cmd.Context(), o)
			if r != nil {
				if werr := a.report(r); werr != nil {
					return werr
				}
			}
			return doctorHint(err)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Module, "module", "", "the library's absolute `path`")
	f.StringVar(&o.Serial, "serial", "", "`serial` of the token (default: the only one)")
	f.StringVar(&o.Label, "label", "", "`label` of the token")
	f.StringVar(&pinFile, "pin-file", "", "`file` with the user PIN, mode 0400")
	f.IntVar(&pinFD, "pin-fd", -1, "`descriptor` to read the user PIN from")
	parent.AddCommand(c)
	return parent
}

func (a *app) report(r *doctor.Report) error {
	if !a.json() {
		return r.Text(a.out)
	}
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

func doctorHint(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, hsm.ErrModule):
		return failed("the library's absolute path; what it needs in the environment (SOFTHSM2_CONF, say) has to be set", "%w", err)
	case errors.Is(err, hsm.ErrNoToken):
		return failed("leave --serial and --label out to see what there is", "%w", err)
	case errors.Is(err, hsm.ErrPIN), errors.Is(err, hsm.ErrPINCount):
		return failed("the PIN was tried once at most; find out why before it is tried again", "%w", err)
	}
	return failed("what was found until then stands above; the vendor's own tools may tell more", "%w", err)
}
