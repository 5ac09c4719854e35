package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/hsm/ceremony/report"
)

// printed writes a document in the format of --format.
func printed(c *cobra.Command, format string, d report.Document) error {
	if format == "html" {
		return d.HTML(c.OutOrStdout())
	}
	return d.Text(c.OutOrStdout())
}

func formatFlag(c *cobra.Command, format *string) {
	c.Flags().StringVar(format, "format", "text", "text or html")
}

func known(format string) error {
	if format != "text" && format != "html" {
		return usagef("--format text or --format html", "unknown format %q", format)
	}
	return nil
}

func scriptCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "script PLAN", Short: "print a plan as a script with boxes for initials", Args: one("plan"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := known(format); err != nil {
				return err
			}
			p, err := readPlan(args[0])
			if err != nil {
				return err
			}
			return printed(c, format, report.Script(p))
		},
	}
	formatFlag(c, &format)
	return c
}

func reportCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "report TRANSCRIPT", Short: "print what a transcript shows, verified first", Args: one("transcript"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := known(format); err != nil {
				return err
			}
			d, err := report.Of(args[0])
			if d.Title == "" {
				return err
			}
			return errors.Join(err, printed(c, format, d)) // one that does not hold is printed too
		},
	}
	formatFlag(c, &format)
	return c
}
