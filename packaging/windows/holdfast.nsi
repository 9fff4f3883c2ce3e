; The installer: copies files, and leaves every decision to setup_agent.py.
; builder.windows fills in the values between at signs.
Unicode true
Target amd64-unicode
Name "Holdfast @VERSION@"
OutFile "@OUT@"
InstallDir "$PROGRAMFILES64\Holdfast"
RequestExecutionLevel admin
SetCompressor @COMPRESSOR@
ShowInstDetails show
!define KEY "Software\Microsoft\Windows\CurrentVersion\Uninstall\Holdfast"
!define PYTHON '"$INSTDIR\python\python.exe" -I'

!include FileFunc.nsh

Page directory
Page instfiles
UninstPage uninstConfirm
UninstPage instfiles

; /CONFIG=FOLDER: config.toml and root.json to begin with.
Var from

Section
    SetShellVarContext all
    SetRegView 64
    ${GetParameters} $0
    ClearErrors
    ${GetOptions} $0 "/CONFIG=" $from

    IfFileExists "$INSTDIR\setup_agent.py" 0 fresh
    nsExec::ExecToLog '${PYTHON} "$INSTDIR\setup_agent.py" stop'
    Pop $0
    RMDir /r "$INSTDIR\python"
    RMDir /r "$INSTDIR\lib"
fresh:
    ; What can't be replaced now must not be mixed with what can.
    IfFileExists "$INSTDIR\python\python.exe" 0 copy
    DetailPrint "Files of the prior version are in use; nothing was changed."
    SetErrorLevel 2
    Abort
copy:
@FILES@
    SetOutPath "$INSTDIR"
    WriteUninstaller "$INSTDIR\uninstall.exe"
    WriteRegStr HKLM "${KEY}" "DisplayName" "Holdfast"
    WriteRegStr HKLM "${KEY}" "DisplayVersion" "@VERSION@"
    WriteRegStr HKLM "${KEY}" "Publisher" "@PUBLISHER@"
    WriteRegStr HKLM "${KEY}" "InstallLocation" "$INSTDIR"
    WriteRegStr HKLM "${KEY}" "UninstallString" '"$INSTDIR\uninstall.exe"'
    WriteRegStr HKLM "${KEY}" "QuietUninstallString" '"$INSTDIR\uninstall.exe" /S'
    WriteRegDWORD HKLM "${KEY}" "EstimatedSize" @KILOBYTES@
    WriteRegDWORD HKLM "${KEY}" "NoModify" 1
    WriteRegDWORD HKLM "${KEY}" "NoRepair" 1

    nsExec::ExecToLog '${PYTHON} -m compileall -q "$INSTDIR\lib"'
    Pop $0
    StrCmp $from "" 0 bring
    nsExec::ExecToLog '${PYTHON} "$INSTDIR\setup_agent.py" finish'
    Goto finished
bring:
    nsExec::ExecToLog '${PYTHON} "$INSTDIR\setup_agent.py" finish --from "$from"'
finished:
    Pop $0
    StrCmp $0 0 done
    DetailPrint "The services couldn't be set up; agentctl-service.cmd tries again."
    SetErrorLevel 3
done:
SectionEnd

; /PURGE: settings and state go too.
Section Uninstall
    SetShellVarContext all
    SetRegView 64
    ${GetParameters} $0
    ClearErrors
    ${GetOptions} $0 "/PURGE" $1
    IfErrors keep
    nsExec::ExecToLog '${PYTHON} "$INSTDIR\setup_agent.py" remove --purge'
    Goto removed
keep:
    nsExec::ExecToLog '${PYTHON} "$INSTDIR\setup_agent.py" remove'
removed:
    Pop $0
    StrCmp $0 0 gone
    DetailPrint "The services couldn't be removed; nothing was deleted."
    SetErrorLevel 3
    Abort
gone:
    RMDir /r "$INSTDIR\python"
    RMDir /r "$INSTDIR\lib"
@REMOVALS@
    Delete "$INSTDIR\was-running"
    Delete "$INSTDIR\uninstall.exe"
    RMDir "$INSTDIR"
    DeleteRegKey HKLM "${KEY}"
SectionEnd
