; The installer: copies files, and leaves every decision to setup_agent.py.
; builder.windows fills in the values between at signs.
;
; Each installation gets a folder of its own. The prior program runs on from its
; own until the new one is complete and the services are told of it. Folders are
; named by the time, so that none has a name that Windows is to delete at the
; next boot, or that anything still runs from.
Unicode true
Target amd64-unicode
Name "Holdfast @VERSION@"
OutFile "@OUT@"
InstallDir "$PROGRAMFILES64\Holdfast"
RequestExecutionLevel admin
SetCompressor @COMPRESSOR@
ShowInstDetails show
AllowSkipFiles off
!define KEY "Software\Microsoft\Windows\CurrentVersion\Uninstall\Holdfast"
!define GUARD "SYSTEM\CurrentControlSet\Services\HoldfastBootGuard"
; Where it was installed before.
InstallDirRegKey HKLM "${KEY}" "InstallLocation"

!include FileFunc.nsh

Page directory
Page instfiles
UninstPage uninstConfirm
UninstPage instfiles

; The new program's folder, and the one that the services run.
Var program
Var prior
; /CONFIG=FOLDER: config.toml and root.json to begin with.
Var from
Var copied

; One at a time: each deletes what no service runs.
!macro ALONE
    System::Call 'kernel32::CreateMutexW(p 0, i 0, w "Global\HoldfastSetup") p ?e'
    Pop $0
    StrCmp $0 183 0 +3 ; ERROR_ALREADY_EXISTS
    SetErrorLevel 4
    Abort
!macroend

Function .onInit
    !insertmacro ALONE
FunctionEnd

Function un.onInit
    !insertmacro ALONE
FunctionEnd

; The disk is full, say. What no service was told of may go.
Function .onInstFailed
    StrCmp $copied "" 0 +4
    SetOutPath "$INSTDIR"
    RMDir /r "$program"
    RMDir "$INSTDIR"
FunctionEnd

Section
    SetShellVarContext all
    SetRegView 64
    ${GetParameters} $0
    ClearErrors
    ${GetOptions} $0 "/CONFIG=" $from

    ReadRegStr $prior HKLM "${KEY}" "Program"
    ${GetTime} "" "LS" $0 $1 $2 $3 $4 $5 $6
    StrCpy $program "$INSTDIR\program-@VERSION@-$2$1$0$4$5$6"
@FILES@
    WriteUninstaller "$program\beside\@UNINSTALLER@"
    SetOutPath "$INSTDIR"
    nsExec::ExecToLog '"$program\python\python.exe" -I -m compileall -q "$program\lib"'
    Pop $0
    StrCpy $copied "yes"

    StrCmp $from "" 0 bring
    nsExec::ExecToLog '"$program\python\python.exe" -I "$program\setup_agent.py" finish'
    Goto finished
bring:
    nsExec::ExecToLog '"$program\python\python.exe" -I "$program\setup_agent.py" finish --from "$from"'
finished:
    Pop $1
    StrCmp $1 0 settle
    SetErrorLevel 3
    StrCmp $prior "" settle
    IfFileExists "$prior\python\python.exe" 0 settle
    DetailPrint "The services couldn't be set up; they stay with the prior version."
    nsExec::ExecToLog '"$prior\python\python.exe" -I "$prior\setup_agent.py" finish'
    Pop $0
    nsExec::ExecToLog '"$prior\python\python.exe" -I "$prior\setup_agent.py" settle'
    Pop $0
    Abort

settle:
    WriteRegStr HKLM "${KEY}" "Program" "$program"
    WriteRegStr HKLM "${KEY}" "DisplayName" "Holdfast"
    WriteRegStr HKLM "${KEY}" "DisplayVersion" "@VERSION@"
    WriteRegStr HKLM "${KEY}" "Publisher" "@PUBLISHER@"
    WriteRegStr HKLM "${KEY}" "InstallLocation" "$INSTDIR"
    WriteRegStr HKLM "${KEY}" "UninstallString" '"$INSTDIR\uninstall.exe"'
    WriteRegStr HKLM "${KEY}" "QuietUninstallString" '"$INSTDIR\uninstall.exe" /S'
    WriteRegDWORD HKLM "${KEY}" "EstimatedSize" @KILOBYTES@
    WriteRegDWORD HKLM "${KEY}" "NoModify" 1
    WriteRegDWORD HKLM "${KEY}" "NoRepair" 1
    nsExec::ExecToLog '"$program\python\python.exe" -I "$program\setup_agent.py" settle'
    Pop $0
    StrCmp $0 0 settled
    SetErrorLevel 3
    DetailPrint "The commands couldn't be put in place; install once more."
settled:
    StrCmp $1 0 done
    DetailPrint "The services couldn't be set up; agentctl-service.cmd tries again."
done:
SectionEnd

; /PURGE: settings and state go too.
Section Uninstall
    SetShellVarContext all
    SetRegView 64
    ReadRegStr $program HKLM "${KEY}" "Program"
    StrCmp $program "" cut
    IfFileExists "$program\python\python.exe" remove
cut:
    ; A removal that was cut off has no services any more.
    ReadRegStr $0 HKLM "${GUARD}" "ImagePath"
    StrCmp $0 "" gone
    DetailPrint "The program isn't whole; install it again, then remove it."
    SetErrorLevel 3
    Abort
remove:
    ${GetParameters} $0
    ClearErrors
    ${GetOptions} $0 "/PURGE" $1
    IfErrors keep
    nsExec::ExecToLog '"$program\python\python.exe" -I "$program\setup_agent.py" remove --purge'
    Goto removed
keep:
    nsExec::ExecToLog '"$program\python\python.exe" -I "$program\setup_agent.py" remove'
removed:
    Pop $0
    StrCmp $0 0 gone
    SetErrorLevel 3
    StrCmp $0 3 gone ; settings or state that something uses
    DetailPrint "The services couldn't be removed; nothing was deleted."
    Abort
gone:
    ; What somebody still runs goes at the next boot.
    FindFirst $0 $1 "$INSTDIR\program-*"
next:
    StrCmp $1 "" last
    RMDir /r /REBOOTOK "$INSTDIR\$1"
    FindNext $0 $1
    Goto next
last:
    FindClose $0
    Delete "$INSTDIR\was-running"
    DeleteRegKey HKLM "${KEY}"
@REMOVALS@
    RMDir "$INSTDIR"
SectionEnd
